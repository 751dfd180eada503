"""A small OpenID provider on this machine: a form that asks for an address, codes, signed tokens."""

import base64
import hashlib
import json
import secrets
import threading
import time
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "synthscope", "client-secret"


class Provider(ThreadingHTTPServer):
    """Runs in a thread of the test; ``asked`` holds the paths that were asked for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.key = RSAKey.generate_key(2048, {"kid": "test"})
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def secrets_toml(self, app_url: str) -> str:
        """The app's .streamlit/secrets.toml for this provider."""
        return (
            f'[auth]\nredirect_uri = "{app_url}/oauth2callback"\ncookie_secret = "{secrets.token_hex(32)}"\n'
            f'client_id = "{CLIENT}"\nclient_secret = "{SECRET}"\n'
            f'server_metadata_url = "{self.url}/.well-known/openid-configuration"\n'
        )

    def token(self, asked: dict[str, str]) -> str:
        """Sign who logged in."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "sub": asked["email"], "email": asked["email"], "iat": now}
        claims |= {"exp": now + 600, "nonce": asked["nonce"], "email_verified": True}
        return jwt.encode({"alg": "RS256", "kid": "test"}, claims, self.key)


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, query = urlsplit(self.path).path, {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        self.server.asked.append(path)
        url = self.server.url
        if path == "/.well-known/openid-configuration":
            ends = {"authorization": "authorize", "token": "token", "end_session": "logout"}
            self._json(
                {"issuer": url, "jwks_uri": f"{url}/jwks", "code_challenge_methods_supported": ["S256"]}
                | {f"{name}_endpoint": f"{url}/{end}" for name, end in ends.items()}
                | {"id_token_signing_alg_values_supported": ["RS256"], "subject_types_supported": ["public"]}
            )
        elif path == "/jwks":
            self._json({"keys": [self.server.key.as_dict(private=False)]})
        elif path == "/authorize":
            fields = "".join(f'<input type="hidden" name="{escape(k)}" value="{escape(v)}">' for k, v in query.items())
            self._answer(
                f'<form action="/approve">{fields}<label>Address <input name="email"></label><button>Go</button></form>',
                "text/html",
            )
        elif path == "/approve":
            code = secrets.token_urlsafe()
            self.server.codes[code] = query
            self._redirect(f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}")
        elif path == "/logout":
            self._redirect(query["post_logout_redirect_uri"])
        else:
            self.send_error(404)

    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        asked = self.server.codes.pop(form["code"][0])
        challenge = hashlib.sha256(form["code_verifier"][0].encode()).digest()
        login = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        if asked["code_challenge"] != base64.urlsafe_b64encode(challenge).decode().rstrip("="):
            self.send_error(400)
        elif self.headers["Authorization"] != f"Basic {login}":
            self.send_error(401)
        else:
            answer = {"access_token": secrets.token_urlsafe(), "token_type": "Bearer", "expires_in": 600}
            self._json(answer | {"id_token": self.server.token(asked)})

    def _json(self, content):
        self._answer(json.dumps(content), "application/json")

    def _answer(self, text, mime):
        self.send_response(200)
        self.send_header("Content-Type", mime)
        self.end_headers()
        self.wfile.write(text.encode())

    def _redirect(self, place):
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()
