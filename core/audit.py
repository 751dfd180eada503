"""Who did what and when: one JSON object a line, appended to a file of the workspace and never changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from core.settings import Settings

TAIL_BYTES = 1 << 20  # more than the lines ever shown


def audit_file(settings: Settings) -> Path:
    """Return where the records are."""
    return settings.workspace / "audit.jsonl"


def record(settings: Settings, who: str, action: str, facts: Mapping[str, Any]) -> None:
    """Append a record; it is on disk when this returns.

    Parameters
    ----------
    settings : Settings
        Names the workspace, which several processes and hosts may share.
    who : str
        E-mail address; "" without login. Whatever it holds, the record stays one line of ASCII.
    action : str
        In a few words.
    facts : mapping
        What it was done to; JSON-able.
    """
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"when": when, "who": who, "action": action, **facts}, default=str).encode() + b"\n"
    settings.workspace.mkdir(parents=True, exist_ok=True)
    # The lock is for shared file systems, where appending alone is not atomic.
    with FileLock(settings.workspace / "audit.lock"), audit_file(settings).open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            line = b"\n" + line  # a writer died in the middle of its line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    byte: bytes = file.read(1)
    return byte


def latest(settings: Settings, n: int) -> list[dict[str, Any]]:
    """Return the last ``n`` records, newest first; a line that is not one is left out."""
    try:
        with audit_file(settings).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[-n - 1 :]
    except FileNotFoundError:
        return []
    return [found for line in reversed(lines) if (found := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
