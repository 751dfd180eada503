"""What the server tells a browser that its pages may do, on every answer."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME
from streamlit.web.server.starlette.starlette_websocket import _get_signed_cookie_with_chunks

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
# A report is one file with its scripts inside: they run, but reach neither the app nor the network.
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; frame-ancestors 'self'; sandbox allow-scripts allow-downloads allow-modals"
)


def page_policy() -> str:
    """Return the content security policy of the app's pages: nothing comes from, or goes to, another host."""
    page = (Path(st.__file__).parent / "static" / "index.html").read_text(encoding="utf-8")
    inline = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    return "; ".join(
        [
            "default-src 'self'",
            # blob: components of our own; wasm: the viewer; each inline script of Streamlit's page by its hash
            " ".join(["script-src 'self' blob: 'wasm-unsafe-eval'", *(f"'sha256-{text}'" for text in hashes)]),
            "style-src 'self' 'unsafe-inline'",  # Streamlit writes its styles into the page
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self' data: blob:",
            "worker-src 'self' blob:",
            "frame-ancestors 'self'",
            "form-action 'self'",
            "base-uri 'self'",
            "object-src 'none'",
        ]
    )


class SecurityHeaders:
    """ASGI middleware that adds the headers."""

    def __init__(self, app: Any) -> None:
        self.app, self.page_policy = app, page_policy()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request with the headers added."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ALWAYS)
                report = "/media/" in scope["path"] and headers.get("content-type", "").startswith("text/html")
                headers["Content-Security-Policy"] = REPORT_POLICY if report else self.page_policy
            await send(message)

        await self.app(scope, receive, send_with_headers)


class LoginForFiles:
    """ASGI middleware: pictures, volumes and reports are for who is logged in and has a role, where there is a login.

    Streamlit gives them to whoever knows the address. Logo, icon and the fonts of /static/media, which the login itself
    shows, stay open.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        from pages import access  # not above: see app.py

        path = scope.get("path", "")
        of_pages = "/media/" in path and not path.startswith("/static/")
        if scope["type"] == "http" and of_pages and not path.endswith(".svg"):
            cookie = _get_signed_cookie_with_chunks(HTTPConnection(scope).cookies, USER_COOKIE_NAME)
            if not access.may_fetch(cookie):
                await PlainTextResponse("Log in first.", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)
