"""The reverse proxy and the unit of docs/server.md, as written there but for names, ports and places."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import ROOT

HOST = "brains.localhost"  # browsers look for it on this machine, without asking a name server


def written(heading: str) -> list[str]:
    """Return the indented blocks below a heading of docs/server.md."""
    text = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert part, f"docs/server.md has no part {heading!r}"
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", part, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in blocks]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Replace words that must be there."""
    for old, new in pairs:
        assert old in text, f"docs/server.md no longer says {old!r}"
        text = text.replace(old, new)
    return text


def site(folder: Path, listen: Sequence[int], ports: Sequence[int]) -> str:
    """Return the proxy's configuration for one process of the app, or for several."""
    text = next(block for block in written("Reverse proxy with TLS") if "listen 443" in block)
    text = replaced(
        text,
        ("listen 443 ssl", f"listen 127.0.0.1:{listen[0]} ssl"),
        ("listen 80", f"listen 127.0.0.1:{listen[1]}"),
        ("server_name brains.lab.org", f"server_name {HOST}"),
        ("/etc/ssl/brains.lab.org", str(folder / "brains")),
    )
    if len(ports) == 1:
        return replaced(text, ("127.0.0.1:8501", f"127.0.0.1:{ports[0]}"))
    before, locations = (block for block in written("Several processes") if "$seat" in block)
    locations = textwrap.indent(locations, "    ")
    lines = [f"    server 127.0.0.1:{port} fail_timeout=2s;\n" for port in ports]
    example = "".join(f"    server 127.0.0.1:850{n} fail_timeout=2s;\n" for n in (1, 2, 3, 4))
    before = replaced(before, (example, "".join(lines)), ("850[1-4]", "|".join(map(str, ports))))
    one = re.search(r"    location / \{.*?\}\n", text, re.DOTALL)
    assert one, "docs/server.md has no location to be replaced"
    return before + text.replace(one.group(), locations)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Proxy:
    """nginx with a certificate of its own, before servers on these ports; raises FileNotFoundError without nginx."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if not program or not shutil.which("openssl"):
            raise FileNotFoundError("nginx or openssl is not installed")
        self.folder, listen = folder, (free_port(), free_port())
        self.url, self.plain = (f"{kind}://{HOST}:{port}" for kind, port in zip(("https", "http"), listen, strict=True))
        (folder / "temp").mkdir(parents=True)
        names = ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
        files = ["-keyout", str(folder / "brains.key"), "-out", str(folder / "brains.pem")]
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, *files], check=True, capture_output=True)  # fmt: skip
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/temp/{kind};\n" for kind in kinds)
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
            f"http {{\naccess_log {folder}/access.log;\n{temporary}{site(folder, listen, ports)}}}\n"
        )
        user = ["-g", "user root;"] if Path(folder).stat().st_uid == 0 else []
        command = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf"), *user]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._wait(listen[0])

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            ended = self.process.poll() is not None
            assert not ended and time.monotonic() < deadline, self.process.communicate()[1]
            time.sleep(0.1)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
