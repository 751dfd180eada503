"""Background jobs: records in SQLite, and a runner process that outlives the web server.

A job is an importable function ``f(context, **plain arguments)``. The web server only writes a record;
the runner, one detached process per workspace, carries it out. When the runner dies, the next one finds
the record and runs the function again: what it had stored is not computed a second time. Knows no science.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.cluster import open_pool
from core.errors import InputError, JobFailed, SynthScopeError
from core.pools import Cancelled, Context, Pool
from core.settings import Settings, child_environment
from core.store import Store

IDLE_SECONDS = 120.0  # an idle runner ends, so that it holds no memory and newer code takes over
HEARTBEAT_SECONDS = 1.0
BUSY_SECONDS = 30.0  # how long the records may be locked, or their disk full, before that is an error
FINISH_SECONDS = 600.0  # the end of a job is worth more patience than its progress
PARALLEL_JOBS = 2
ACTIVE = ("queued", "running")


# -- records -----------------------------------------------------------------------------------------------------------

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, function TEXT, arguments TEXT, title TEXT, state TEXT, progress REAL DEFAULT 0,
    message TEXT DEFAULT '', error TEXT DEFAULT '', result TEXT DEFAULT '', attempts INTEGER DEFAULT 0,
    created REAL, started REAL, finished REAL, heartbeat REAL, cancel INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS log (job TEXT, time REAL, text TEXT);
CREATE INDEX IF NOT EXISTS log_job ON log (job);
"""


@dataclass(frozen=True)
class Job:
    """One job record; times are seconds since the epoch."""

    id: str
    function: str
    arguments: dict[str, Any]
    title: str
    state: str
    progress: float
    message: str
    error: str
    result: dict[str, Any]
    attempts: int
    cancelled: bool
    created: float
    started: float | None
    finished: float | None
    heartbeat: float | None

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ACTIVE


@contextmanager
def _database(settings: Settings) -> Iterator[sqlite3.Connection]:
    settings.workspace.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(settings.workspace / "jobs.sqlite", timeout=BUSY_SECONDS, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_SCHEMA)
        yield connection
    finally:
        connection.close()


def submit(settings: Settings, function: str, arguments: dict[str, Any], title: str) -> str:
    """Queue a job and make sure that a runner carries it out.

    Parameters
    ----------
    settings : Settings
        Names the workspace.
    function : str
        "package.module:function", called as ``function(context, **arguments)``.
    arguments : dict
        JSON-able.
    title : str
        Shown on screen.

    Returns
    -------
    str
        Job id; that of the same job when it already waits or runs.
    """
    text = json.dumps(arguments, sort_keys=True)
    with _database(settings) as db:
        db.execute("BEGIN IMMEDIATE")
        same = db.execute(
            "SELECT id FROM jobs WHERE function = ? AND arguments = ? AND state IN ('queued', 'running')",
            (function, text),
        ).fetchone()
        job_id = same["id"] if same else uuid.uuid4().hex[:12]
        if not same:
            db.execute(
                "INSERT INTO jobs (id, function, arguments, title, state, created) VALUES (?, ?, ?, ?, 'queued', ?)",
                (job_id, function, text, title, time.time()),
            )
        db.execute("COMMIT")
    ensure_runner(settings)
    return str(job_id)


def list_jobs(settings: Settings, *, function: str = "", **arguments: Any) -> list[Job]:
    """Return the job records, newest first; those of a function, or whose arguments include these."""
    with _database(settings) as db:
        rows = db.execute("SELECT * FROM jobs ORDER BY created DESC").fetchall()
    found = [_job(row) for row in rows if not function or row["function"] == function]
    return [job for job in found if arguments.items() <= job.arguments.items()]


def status(settings: Settings, job_id: str) -> Job:
    """Return one job record.

    Raises
    ------
    InputError
        When there is no such job.
    """
    with _database(settings) as db:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise InputError("there is no such job.", job_id, "Look at the list of jobs.")
    return _job(row)


def read_log(settings: Settings, job_id: str, *, last: int = 200) -> list[tuple[float, str]]:
    """Return the last log lines of a job as (time, text)."""
    with _database(settings) as db:
        rows = db.execute(
            "SELECT time, text FROM log WHERE job = ? ORDER BY rowid DESC LIMIT ?", (job_id, last)
        ).fetchall()
    return [(row["time"], row["text"]) for row in reversed(rows)]


def cancel(settings: Settings, job_id: str) -> None:
    """Ask a job to stop; what it finished stays stored."""
    with _database(settings) as db:
        db.execute(
            "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'queued'", (time.time(), job_id)
        )
        db.execute("UPDATE jobs SET cancel = 1, message = 'stopping …' WHERE id = ? AND state = 'running'", (job_id,))


def retry(settings: Settings, job_id: str) -> None:
    """Queue an ended job again; finished parts are read from the store."""
    with _database(settings) as db:
        db.execute(
            "UPDATE jobs SET state = 'queued', cancel = 0, error = '', finished = NULL "
            "WHERE id = ? AND state NOT IN ('queued', 'running')",
            (job_id,),
        )
    ensure_runner(settings)


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys() if name != "cancel"}  # noqa: SIM118 - sqlite3.Row iterates values
    values["cancelled"] = bool(row["cancel"])
    values["arguments"] = json.loads(row["arguments"])
    values["result"] = json.loads(row["result"] or "{}")
    return Job(**values)


# -- runner ------------------------------------------------------------------------------------------------------------


def runner_alive(settings: Settings) -> bool:
    """Tell whether a runner works on this workspace."""
    settings.workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.workspace / "runner.lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def ensure_runner(settings: Settings) -> None:
    """Start a runner, detached from this process, when jobs wait and none runs."""
    if not any(job.active for job in list_jobs(settings)) or runner_alive(settings):
        return
    with (settings.workspace / "runner.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "core.jobs"],
            cwd=Path(__file__).resolve().parent.parent,
            env=child_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def run_pending(settings: Settings, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Carry out queued jobs until none came for ``idle_seconds``; returns at once when another runner lives."""
    settings.workspace.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.workspace / "runner.lock")
    try:
        lock.acquire(timeout=0.5)  # a page that asks whether a runner lives holds it for a moment
    except Timeout:
        return
    try:
        _requeue_orphans(settings)
        Store(settings.workspace).remove_leftovers()
        with open_pool(settings) as pool, ThreadPoolExecutor(PARALLEL_JOBS) as threads:
            _serve(settings, pool, threads, idle_seconds)
    finally:
        lock.release()


def _requeue_orphans(settings: Settings) -> None:
    """Jobs left running by a runner that died wait again: holding the lock proves that it is gone."""
    with _database(settings) as db:
        db.execute("UPDATE jobs SET state = 'queued', message = 'resuming' WHERE state = 'running' AND cancel = 0")
        db.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE state = 'running'", (time.time(),))


def _serve(settings: Settings, pool: Pool, threads: ThreadPoolExecutor, idle_seconds: float) -> None:
    running: dict[str, Any] = {}
    last_work = time.monotonic()
    while time.monotonic() - last_work < idle_seconds:
        running = {job: future for job, future in running.items() if not future.done()}
        if len(running) < PARALLEL_JOBS and (job := _take(settings)) is not None:
            running[job.id] = threads.submit(_run, settings, pool, job)
            continue
        if running:
            last_work = time.monotonic()
            with suppress(sqlite3.OperationalError), _database(settings) as db:
                db.executemany("UPDATE jobs SET heartbeat = ? WHERE id = ?", [(time.time(), j) for j in running])
        time.sleep(HEARTBEAT_SECONDS / 2)


def _take(settings: Settings) -> Job | None:
    try:
        with _database(settings) as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY created LIMIT 1").fetchone()
            if row is not None:
                now = time.time()
                db.execute(
                    "UPDATE jobs SET state = 'running', attempts = attempts + 1, started = ?, heartbeat = ? "
                    "WHERE id = ?",
                    (now, now, row["id"]),
                )
            db.execute("COMMIT")
    except sqlite3.OperationalError:
        return None  # the records are locked, or their disk is full: asked again soon
    return _job(row) if row is not None else None


def _run(settings: Settings, pool: Pool, job: Job) -> None:
    record = _Recorder(settings, job.id)
    context = Context(settings, pool, record.report, record.cancelled)
    try:
        result = resolve(job.function)(context, **job.arguments) or {}
        record.finish("done", result=result)
    except Cancelled:
        record.finish("cancelled")
    except SynthScopeError as error:
        record.finish("failed", error=str(error))
    except Exception as error:
        record.report(None, traceback.format_exc())
        record.finish("failed", error=f"unexpected {type(error).__name__}: {error}")


class _Recorder:
    """Writes progress of one job into its record, at most a few times a second."""

    def __init__(self, settings: Settings, job_id: str) -> None:
        self.settings, self.job_id = settings, job_id
        self.last = -1.0  # of a clock that nobody sets back
        self.stop = False
        self.lock = threading.Lock()

    def report(self, fraction: float | None, message: str) -> None:
        now = time.monotonic()
        # Records that are locked, or on a full disk, cost a line of progress, never the job.
        with self.lock, suppress(sqlite3.OperationalError), _database(self.settings) as db:
            if fraction is None:
                db.execute("INSERT INTO log VALUES (?, ?, ?)", (self.job_id, time.time(), message))
            elif now - self.last > 0.3 or fraction >= 1:
                self.last = now
                db.execute("UPDATE jobs SET progress = ?, message = ? WHERE id = ?", (fraction, message, self.job_id))
                row = db.execute("SELECT cancel FROM jobs WHERE id = ?", (self.job_id,)).fetchone()
                self.stop = bool(row and row["cancel"])

    def cancelled(self) -> bool:
        return self.stop

    def finish(self, state: str, *, result: dict[str, Any] | None = None, error: str = "") -> None:
        give_up = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                return self._write_end(state, result or {}, error)
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise  # the next runner finds the job "running", and its parts in the store
                time.sleep(HEARTBEAT_SECONDS)

    def _write_end(self, state: str, result: dict[str, Any], error: str) -> None:
        with _database(self.settings) as db:
            db.execute(
                "UPDATE jobs SET state = ?, error = ?, result = ?, finished = ?, message = '', "
                "progress = CASE WHEN ? = 'done' THEN 1 ELSE progress END WHERE id = ?",
                (state, error, json.dumps(result), time.time(), state, self.job_id),
            )


def resolve(name: str) -> Callable[..., Any]:
    """Import ``package.module:function``; only functions of ``core`` are accepted."""
    module, _, function = name.partition(":")
    if module.partition(".")[0] != "core" or not function:
        raise JobFailed("not a job function.", name, "Use 'core.module:function'.")
    job_function: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return job_function


def _main() -> None:
    from core.settings import from_environment

    # SIGTERM ends the runner in order: workers stop, records stay 'running' and are resumed by the next one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    run_pending(from_environment())


if __name__ == "__main__":
    _main()
