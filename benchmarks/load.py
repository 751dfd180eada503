"""Many people at once: sessions that speak Streamlit's own protocol open pages and change widgets of a study.

Times are from sending a change until the server says that the script has finished. Run it on a finished study, for
example the demo's workspace: `SYNTHSCOPE_WORKSPACE=~/.synthscope python -m benchmarks.load`. Sessions look and choose;
they press no button, so that no job runs beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import connect

from benchmarks.measure import processor_time

ROOT = Path(__file__).resolve().parent.parent
THINK = (2.0, 15.0)  # seconds between two actions of one session
NEW_PAGE = 0.3  # share of actions that open a page; the others change a widget
ARRIVAL = 60.0  # seconds within which all sessions come, one after another; times are noted afterwards
PATIENCE = 60.0  # seconds until an answer counts as an error
MIB = 2**20


@dataclass
class Measured:
    """Seconds of page openings and widget answers by page, errors, (seconds, MiB of the server), its work."""

    opened: list[tuple[str, float]] = field(default_factory=list)
    answered: list[tuple[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    runs: int = 0  # of the script, also of fragments that run by themselves
    used: float = 0.0  # seconds of processor time of the server


class Session:
    """One browser tab, as far as the server can tell."""

    def __init__(self, socket: Any, dice: random.Random, measured: Measured) -> None:
        self.socket, self.dice, self.measured = socket, dice, measured
        self.states: dict[str, tuple[str, Any]] = {}  # of widgets: the field of WidgetState, and its value
        self.widgets: dict[str, tuple[str, Any]] = {}  # kind and message of the widgets shown
        self.pages: dict[str, str] = {}  # name by hash
        self.page = self.query = ""
        self.repeats: dict[str, float] = {}  # seconds between two runs of a fragment that runs by itself

    async def run(self, fragment: str = "") -> float:
        """Have the script run; return the seconds until it finished."""
        asked, message = time.perf_counter(), BackMsg()
        state = message.rerun_script
        state.page_script_hash, state.query_string, state.fragment_id = self.page, self.query, fragment
        state.is_auto_rerun = bool(fragment)
        for name, (kind, value) in self.states.items():
            widget = state.widget_states.widgets.add(id=name)
            if kind == "string_array_value":
                widget.string_array_value.data.extend(value)
                widget.string_array_value.SetInParent()
            else:
                setattr(widget, kind, value)
        if not fragment:
            self.widgets, self.repeats = {}, {}
        await self.socket.send(message.SerializeToString())
        async with asyncio.timeout(PATIENCE):
            while True:
                message = ForwardMsg.FromString(await self.socket.recv())
                kind = message.WhichOneof("type")
                if kind == "script_finished" and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                    self.measured.runs += 1
                    return time.perf_counter() - asked
                self.take(kind, message)

    def take(self, kind: str | None, message: Any) -> None:
        """Note what a message of the server says."""
        if kind == "navigation":
            self.pages = {page.page_script_hash: page.page_name for page in message.navigation.app_pages}
            self.page = message.navigation.page_script_hash
        elif kind == "page_info_changed":
            self.query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            self.repeats[message.auto_rerun.fragment_id] = message.auto_rerun.interval
        elif kind == "session_event" and message.session_event.HasField("script_compilation_exception"):
            self.measured.errors.append(message.session_event.script_compilation_exception.message)
        elif kind == "delta" and message.delta.WhichOneof("type") == "new_element":
            element = message.delta.new_element
            name = element.WhichOneof("type") or ""
            shown = getattr(element, name) if name else None
            if name == "exception":
                self.measured.errors.append(f"{self.pages.get(self.page)}: {shown.type} {shown.message}")
            elif name in ("selectbox", "radio", "checkbox", "button_group", "multiselect") and not shown.disabled:
                self.widgets[shown.id] = (name, shown)

    def change(self) -> bool:
        """Change a widget of the page by chance; tell whether there is one."""
        if not self.widgets:
            return False
        name, (kind, widget) = self.dice.choice(sorted(self.widgets.items(), key=lambda item: item[0]))
        if kind == "checkbox":
            old = self.states.get(name, ("", widget.default))[1]
            self.states[name] = ("bool_value", not old)
        elif kind == "button_group":
            options = [option.content for option in widget.options]
            self.states[name] = ("string_array_value", [self.dice.choice(options)])
        elif kind == "multiselect":
            chosen = self.dice.sample(list(widget.options), self.dice.randint(1, min(3, len(widget.options))))
            self.states[name] = ("string_array_value", chosen)
        elif widget.options:
            self.states[name] = ("string_value", self.dice.choice(list(widget.options)))
        return True

    async def act(self, *, noted: bool) -> None:
        """Open a page or change a widget, and note how long the answer took."""
        if self.dice.random() < NEW_PAGE or not self.change():
            self.page, self.query = self.dice.choice(list(self.pages)), ""
            took = self.measured.opened
        else:
            took = self.measured.answered
        seconds = await self.run()
        if noted:
            took.append((self.pages.get(self.page, "") or "overview", seconds))

    async def wait(self, seconds: float) -> None:
        """Think; fragments that run by themselves go on meanwhile, as in a browser."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min([left, *self.repeats.values()]))
            if time.monotonic() < until:
                for fragment in list(self.repeats):
                    await self.run(fragment)


async def visit(
    url: str, seed: int, start: float, until: float, think: tuple[float, float], measured: Measured
) -> None:
    """Behave like one person until the time is over."""
    dice = random.Random(seed)
    await asyncio.sleep(dice.uniform(0, max(0.0, start - time.monotonic())))
    try:
        async with connect(f"{url}/_stcore/stream", subprotocols=["streamlit"], max_size=None) as socket:
            session = Session(socket, dice, measured)
            await session.run()
            while time.monotonic() < until:
                await session.wait(dice.uniform(*think))
                await session.act(noted=time.monotonic() > start)
    except Exception as error:  # whatever it is, the load goes on and the error is told
        measured.errors.append(f"session {seed}: {type(error).__name__} {error}")


async def watch(processes: Sequence[psutil.Process], until: float, measured: Measured) -> None:
    """Note the memory and the work of the server."""
    begin, before = time.monotonic(), processor_time(processes)
    while time.monotonic() < until:
        with suppress(psutil.Error):
            memory = sum(process.memory_info().rss for process in processes)
            measured.memory.append((time.monotonic() - begin, memory / MIB))
        await asyncio.sleep(min(5.0, max(0.1, (until - begin) / 20)))
    measured.used = processor_time(processes) - before


async def _all(
    servers: Sequence[tuple[str, int]], sessions: int, seconds: float, think: tuple[float, float]
) -> Measured:
    measured, until = Measured(), time.monotonic() + seconds
    start = until - seconds + min(ARRIVAL, seconds / 3)
    urls = [url for url, _ in servers]
    people = (visit(urls[seed % len(urls)], seed, start, until, think, measured) for seed in range(sessions))
    await asyncio.gather(watch([psutil.Process(pid) for _, pid in servers], until, measured), *people)
    return measured


def measure(sessions: int, seconds: float, think: tuple[float, float] = THINK, processes: int = 1) -> Measured:
    """Start a server on the workspace of the environment, of so many processes, and put it under load."""
    with ExitStack() as stack:
        servers = [stack.enter_context(server()) for _ in range(processes)]
        return asyncio.run(_all(servers, sessions, seconds, think))


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """Run the app on a free port; give its websocket address and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        "app.py",
        "--server.port",
        str(port),
        "--server.headless",
        "true",
    ]
    process = subprocess.Popen([*command, "--server.address", "127.0.0.1"], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                break
            time.sleep(0.2)
        yield f"ws://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(30)


async def _alone(url: str, process: psutil.Process, rounds: int) -> dict[str, list[tuple[float, float]]]:
    runs: dict[str, list[tuple[float, float]]] = {}
    async with connect(f"{url}/_stcore/stream", subprotocols=["streamlit"], max_size=None) as socket:
        session = Session(socket, random.Random(0), Measured())
        await session.run()
        for turn in range(rounds + 2):  # the first two make what is kept
            for page, name in list(session.pages.items()):
                session.page, session.query = page, ""
                before = processor_time([process])
                wall = await session.run()
                if turn > 1:
                    used = processor_time([process]) - before
                    runs.setdefault(name or "overview", []).append((used, wall))
    return runs


def measure_alone(rounds: int) -> None:
    """Open every page in turn in one session; print the processor time of the server and the time waited."""
    with server() as (url, pid):
        runs = asyncio.run(_alone(url, psutil.Process(pid), rounds))
    print("| page | processor, ms | waited, ms |\n|---|---|---|")
    for page, found in runs.items():
        used, wall = np.median(np.array(found), axis=0)  # of a process, counted in steps of 10 ms: hence the mean
        used = np.mean([one for one, _ in found])
        print(f"| {page} | {1000 * used:.0f} | {1000 * wall:.0f} |")


def report(measured: Measured, sessions: int) -> None:
    """Print what was measured."""
    for what, found in (("widget answers", measured.answered), ("page openings", measured.opened)):
        print(f"| {what} | n | p50, s | p95, s | worst, s |\n|---|---|---|---|---|")
        pages = sorted({page for page, _ in found})
        for page in ["all", *pages]:
            times = [seconds for name, seconds in found if page in ("all", name)]
            if times:
                p50, p95 = np.percentile(times, [50, 95])
                print(f"| {page} | {len(times)} | {p50:.2f} | {p95:.2f} | {max(times):.2f} |")
    print(f"{sessions} sessions; {len(measured.errors)} errors" + "".join(f"\n- {e}" for e in measured.errors[:10]))
    marks = measured.memory[:: max(1, len(measured.memory) // 12)]
    print("server's memory: " + ", ".join(f"{mib:.0f} MiB at {seconds / 60:.1f} min" for seconds, mib in marks))
    print(f"server: {measured.used:.0f} s of processor time for {measured.runs} runs, its first ones among them")
    print(f"load of the machine: {', '.join(f'{load:.1f}' for load in os.getloadavg())} on {os.cpu_count()} cores")


def main() -> None:
    """Measure and print; exit with 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=1, help="of the server; each session stays with one")
    parser.add_argument("--alone", type=int, default=0, metavar="ROUNDS", help="one session opens every page instead")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    if options.alone:
        return measure_alone(options.alone)
    measured = measure(options.sessions, 60 * options.minutes, processes=options.processes)
    report(measured, options.sessions)
    sys.exit(bool(measured.errors))


if __name__ == "__main__":
    main()
