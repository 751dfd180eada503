"""A scheduler, workers and command lines as processes of their own, for tests that stop, stall and kill them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def environment(workspace: Path, **changes: str) -> dict[str, str]:
    """Environment of a process that finds the package from any folder and keeps its results in the workspace."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SYNTHSCOPE_", "DASK_"))}
    ours = {"PYTHONPATH": str(ROOT), "SYNTHSCOPE_WORKSPACE": str(workspace), "SYNTHSCOPE_WORKERS": "0"}
    return {**kept, **ours, **changes}


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and all its children, stopped ones too."""
    with suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait(20)


class Cluster:
    """A scheduler and workers on this host.

    Parameters
    ----------
    folder : Path
        Working folder of the processes, and of their logs.
    settings : str
        Environment variables of Dask for the scheduler, for example a short time to live of silent workers.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings = folder, settings
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"

    def start(self, module: str, *arguments: str, on: Sequence[str] = (), **changes: str) -> subprocess.Popen[bytes]:
        """Start a module of Dask or of the product, its output in the log; ``on`` comes before the command."""
        env = {**environment(self.folder / "unused"), **self.settings, **changes}
        with (self.folder / "log.txt").open("ab") as log:
            command = [*on, sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def scheduler(self, **changes: str) -> subprocess.Popen[bytes]:
        """Start the scheduler, on the same port every time."""
        place = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        process = self.start("distributed.cli.dask_scheduler", *place, **changes)
        wait_for(self.answers)
        return process

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def worker(self, *arguments: str, **changes: str) -> subprocess.Popen[bytes]:
        """Start a worker with its nanny."""
        place = ("--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder))
        return self.start("distributed.cli.dask_worker", self.address, *place, *arguments, **changes)

    def close(self) -> None:
        for process in reversed(self.processes):
            end(process)


def command(workspace: Path, *arguments: object, on: Sequence[str] = (), **changes: str) -> subprocess.Popen[str]:
    """Start ``python -m core`` with the workspace, from the folder the workspace is in; ``on`` comes before it."""
    words = [*on, sys.executable, "-m", "core", *[str(argument) for argument in arguments]]
    env = environment(workspace, **changes)
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=workspace.parent, env=env, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")


def run(workspace: Path, *arguments: object, code: int | None = None, **changes: str) -> str:
    """Run ``python -m core`` to its end; return what it wrote on stderr."""
    process = command(workspace, *arguments, **changes)
    try:
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert code is None or process.returncode == code, errors
    return errors


def tables(folder: Path) -> dict[str, bytes]:
    """Every CSV of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


def artefacts(workspace: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished artefact: one that is made again has others."""
    found = {}
    for path in (workspace / "artefacts").rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".provenance":
            facts = path.stat()
            found[str(path.relative_to(workspace))] = (facts.st_ino, facts.st_mtime_ns)
    return found


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker process below a nanny."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    return []


def stall(process: psutil.Process) -> None:
    """Stop a process as a network that is gone does: connected, and silent."""
    os.kill(process.pid, signal.SIGSTOP)


def summary(text: str) -> dict[str, object]:
    """The JSON line of ``--json``."""
    return dict(json.loads(next(line for line in text.splitlines() if line.startswith("{"))))
