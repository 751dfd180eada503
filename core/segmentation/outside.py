"""Programs outside this process: run one under watch, end it when it hangs, and tell how much memory there is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL = 0.5  # seconds between two looks at a running program
# Limit and use of a container, which the machine's own figures do not show: cgroup 2, then 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Run:
    """How a program ended.

    Parameters
    ----------
    code : int or None
        Exit status, negative for a signal; None when it was stopped because it made no progress.
    text : str
        What it printed.
    seconds : float
        How long it ran.
    """

    code: int | None
    text: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was killed from outside, as the system does when memory runs out."""
        return self.code in (-signal.SIGKILL, 128 + signal.SIGKILL)


def run(command: Sequence[str], *, log: Path, watch: Path, patience: float) -> Run:
    """Run a program to its end, or until it writes nothing new for too long.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; it gets no input to read.
    log : Path
        File that takes what it prints.
    watch : Path
        Folder it writes to.
    patience : float
        Seconds without a new or grown file in ``watch`` after which it is stopped.

    Raises
    ------
    OSError
        When it cannot be started.
    """
    start = progress = time.monotonic()
    seen = _written(watch)
    code: int | None
    with log.open("wb") as stream:
        # A group of its own: the program is often a script that starts another, and both must end.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=POLL)
                    break
                now, written = time.monotonic(), _written(watch)
                if written != seen:
                    seen, progress = written, now
                elif now - progress > patience:
                    code = None
                    break
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Run(code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)


def end_leftovers(folder: Path) -> None:
    """End programs that work in ``folder`` because the process that started them was killed."""
    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith(f"{folder}/") for part in process.info["cmdline"] or ()):
            with suppress(psutil.Error):
                process.kill()


def available_memory() -> int:
    """Return the bytes a new program can use, container limits included."""
    free = psutil.virtual_memory().available
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # absent, or "max"
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()) + _reclaimable())
    return int(max(0, free))


def _reclaimable() -> int:
    """Bytes of file cache that a container counts as used and gives back on demand."""
    for path in ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"):
        with suppress(OSError, ValueError):
            for line in Path(path).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "inactive_file":
                    return int(value)
    return 0


def _written(folder: Path) -> tuple[int, int]:
    """Count the files of a folder, and their bytes."""
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)
