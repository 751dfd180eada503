"""Dask clusters: the workers of this process, or those of any scheduler. Knows no science."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from core import __version__
from core.errors import JobFailed
from core.pools import NOTHING, InProcessPool, Needs, Outcome, Pool, attempt
from core.settings import Settings

# Dask lets workers return every freed array to the system; the page faults of getting it back double the time of
# networks. One thread a worker, as Dask sets it too.
KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_MAX_": "0",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
TASK_RETRIES = 3  # a worker that dies takes its task along; the fourth death blames the task
WINDOW = 4  # tasks in flight per thread of a worker: enough to keep it busy, few enough to cancel fast
LOOK_SECONDS = 1.0  # how often to look which workers there are
SCHEDULER_SECONDS = 20  # how long a scheduler may take to answer at first
RECONNECT_SECONDS = 120  # and how long it may be away during a run
SILENT_SECONDS = 60  # until a worker is asked again that did not tell its code
RESULT_SECONDS = 10  # and how long the small result of a finished task may be on its way
GIVE_BACK_SECONDS = (
    10  # between two times that a worker returns freed memory: so far apart they cost nothing to speak of
)
GPU = "GPU"  # the Dask resource that workers with a graphics card declare
MARK = "workspace.id"  # a file of the workspace: a worker that reads the same in it shares the storage

_log = logging.getLogger("synthscope")


@dataclass(frozen=True)
class Terms:
    """What a worker of another host must agree with before it is trusted with a task."""

    workspace: str
    mark: str
    paths: tuple[str, ...]


class DaskPool:
    """Runs tasks on a Dask cluster.

    Parameters
    ----------
    connect : callable
        ``connect(seconds)`` returns a connected client; called again when the scheduler was away.
    workspace : Path, optional
        Folder that the workers must share, when they are not children of this process.
    """

    def __init__(self, connect: Callable[[float], Any], workspace: Path | None = None) -> None:
        self.connect, self.workspace = connect, workspace
        self.client = connect(SCHEDULER_SECONDS)
        self.lock = threading.Lock()
        self.mark = _mark(workspace) if workspace else ""
        self.workers: dict[str, Any] = {}
        self.checked: set[str] = set()
        self.lonely = False  # whether it was said that there are none
        self.fled = 0  # workers that left when they were asked
        self.silent: dict[str, float] = {}  # and when to ask those again that did not answer
        self.looked = -LOOK_SECONDS

    def map(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], needs: Needs = NOTHING
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish; a bounded number is in flight."""
        terms = Terms(str(self.workspace), self.mark, needs.paths) if self.workspace else None
        client, waiting, finished = self.client, deque(range(len(items))), SimpleQueue[Any]()
        running: dict[str, tuple[int, Any, dict[str, Any]]] = {}  # by key: index, future, where it may run
        try:
            while waiting or running:
                if client.status != "running":
                    client = self._reconnected(client)
                    waiting.extendleft(index for index, _, _ in running.values())
                    running.clear()
                width, place = self._place(needs.gpu)
                for key in [k for k, (_, _, where) in running.items() if self._is_stranded(where)]:
                    index, future, _ = running.pop(key)
                    future.cancel()
                    waiting.appendleft(index)
                while waiting and len(running) < width:
                    index = waiting.popleft()
                    task = (_attempt_on_worker, terms, function, *items[index])
                    future = client.submit(*task, retries=TASK_RETRIES, pure=False, **place)
                    running[future.key] = (index, future, place)
                    future.add_done_callback(finished.put)
                try:
                    future = finished.get(timeout=LOOK_SECONDS)
                except Empty:
                    continue
                if future.key not in running:
                    continue
                index, _, _ = running.pop(future.key)
                outcome = _outcome_of(future)
                if outcome is None:
                    future.cancel()
                    waiting.appendleft(index)
                else:
                    yield index, outcome
        finally:
            with suppress(Exception):
                client.cancel([future for _, future, _ in running.values()])

    def _place(self, gpu: bool) -> tuple[int, dict[str, Any]]:
        """Return how many tasks may be in flight, and where: those of the network on graphics cards, others beside."""
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self._look()
        with_card = {name for name, facts in self.workers.items() if facts["resources"].get(GPU)}
        chosen = with_card if gpu and with_card else self.workers.keys() - with_card or self.workers.keys()
        width = WINDOW * max(1, sum(self.workers[name]["nthreads"] for name in chosen))
        if self.workspace and self.checked.isdisjoint(self.workers):
            width = 0  # nobody is there yet
            if not self.lonely:
                self.lonely = True
                _log.warning("no worker is connected to the Dask scheduler; waiting")
        if not with_card or (chosen == self.workers.keys() and not gpu):
            return width, {}
        return width, {"resources": {GPU: 1}} if gpu else {"workers": sorted(chosen)}

    def _look(self) -> None:
        """See which workers there are."""
        self.looked = time.monotonic()
        with suppress(Exception):  # a connection that is lost shows in the client's status
            self.workers = self.client.scheduler_info(n_workers=-1)["workers"]
        self._check_code()

    def _check_code(self) -> None:
        """Refuse workers with other code. One without the package could not even read the task that asks it."""
        now = time.monotonic()
        new = [name for name in self.workers if name not in self.checked and self.silent.get(name, 0) <= now]
        if not new or not self.workspace:
            return
        answers: list[Any] = []
        with suppress(Exception):
            answers = self.client.sync(_codes_of, self.client, new)
        for name, answer in zip(new, answers, strict=False):
            if answer == code_digest():
                self.checked.add(name)
                self.fled = 0
            elif isinstance(answer, TimeoutError):
                self.silent[name] = now + SILENT_SECONDS
            else:
                self.fled += isinstance(answer, OSError)
                if not isinstance(answer, OSError) or self.fled > TASK_RETRIES:
                    what = "it runs another version of SynthScope, or none."
                    advice = "Start scheduler and workers with this version in PYTHONPATH."
                    raise JobFailed(what, f"Dask worker {name}", advice)

    def _is_stranded(self, place: dict[str, Any]) -> bool:
        """Tell whether every worker a task was meant for is gone; one that was restarted has another address."""
        return "workers" in place and self.workers.keys().isdisjoint(place["workers"])

    def _reconnected(self, lost: Any) -> Any:
        """Return a client for the one that lost the scheduler; what was in flight is submitted again."""
        with self.lock:
            if self.client is lost:
                _log.warning("the Dask scheduler went away; waiting up to %d s for it", RECONNECT_SECONDS)
                with suppress(Exception):
                    lost.close(timeout=5)
                self.client = self.connect(RECONNECT_SECONDS)
            return self.client


def _mark(workspace: Path) -> str:
    """Return what the workspace's mark says; made when missing."""
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), (workspace / MARK).open("x", encoding="utf-8") as file:
            file.write(uuid.uuid4().hex)
        return (workspace / MARK).read_text(encoding="utf-8")
    except OSError as error:
        what = f"cannot write ({error.strerror})."
        raise JobFailed(what, str(workspace), "Choose another workspace (SYNTHSCOPE_WORKSPACE).") from error


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Hash the package's source: a worker with other code would give other numbers."""
    folder = Path(__file__).resolve().parent
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


async def _codes_of(client: Any, workers: Sequence[str]) -> list[Any]:
    """Ask each worker for the hash of its code; an error in its place, of time when it is silent."""

    async def ask(name: str) -> Any:
        found = await asyncio.wait_for(client._run(code_digest, workers=[name], on_error="return"), RESULT_SECONDS)
        return found[name]

    return await asyncio.gather(*map(ask, workers), return_exceptions=True)


def _attempt_on_worker(terms: Terms | None, function: Callable[..., Any], *arguments: Any) -> Outcome:
    if terms is not None:
        _check_worker(terms)
    try:
        return attempt(function, *arguments)
    finally:
        _give_back()


_given_back = [0.0]  # when memory was given back last, by the monotonic clock


def _give_back() -> None:
    """Return freed memory to the system now and then: kept for good it is cut into pieces, and more is taken."""
    if time.monotonic() - _given_back[0] < GIVE_BACK_SECONDS:
        return
    _given_back[0] = time.monotonic()
    with suppress(TypeError, AttributeError):  # where there is no glibc, no memory was kept
        ctypes.CDLL(None).malloc_trim(0)


@lru_cache(maxsize=64)  # what was refused is not remembered: storage may be mounted late
def _check_worker(terms: Terms) -> None:
    place = f"Dask worker on {socket.gethostname()}"
    try:
        same = Path(terms.workspace, MARK).read_text(encoding="utf-8") == terms.mark
    except OSError:
        same = False
    advice = "Put it on storage that all hosts share, under the same path."
    if not same:
        raise JobFailed(f"it does not see the workspace {terms.workspace}.", place, advice)
    if not os.access(terms.workspace, os.W_OK):
        raise JobFailed(f"it may not write to the workspace {terms.workspace}.", place, "Correct the permissions.")
    if missing := [path for path in terms.paths if not os.path.exists(path)]:
        raise JobFailed(f"it does not see {missing[0]}.", place, advice)


def _outcome_of(future: Any) -> Outcome | None:
    """Return what became of a task; None when its result was lost with the connection or the worker that held it.

    Raises
    ------
    JobFailed
        The worker or the scheduler cannot take part: no task of the run is safe there.
    """
    try:
        outcome: Outcome = future.result(timeout=RESULT_SECONDS)
        return outcome
    except JobFailed:
        raise
    except TimeoutError:
        return None
    except Exception as error:
        if future.cancelled():
            return None
        if isinstance(error, ImportError | AttributeError) or "deserialization" in str(error):
            what = f"the Dask scheduler or a worker cannot load the task ({str(error).splitlines()[0]})."
            advice = "Start them with the same version of SynthScope in PYTHONPATH and the same packages."
            raise JobFailed(what, "", advice) from error
        # the worker died with the task, again and again
        return Outcome(error=f"the worker died on this task ({type(error).__name__}); it may need more memory.")


class LazyPool:
    """Opens the cluster when the first tasks come: bad input is refused before workers start.

    Parameters
    ----------
    settings : Settings
        Scheduler or number of workers.
    stack : ExitStack
        Closes what was opened.
    """

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        self.settings, self.stack = settings, stack
        self.pool: Pool | None = None
        self.lock = threading.Lock()

    def map(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], needs: Needs = NOTHING
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish."""
        if not items:
            return
        with self.lock:
            self.pool = self.pool or self.stack.enter_context(_open(self.settings))
        yield from self.pool.map(function, items, needs)


@contextmanager
def open_pool(settings: Settings) -> Iterator[Pool]:
    """Offer the pool the settings ask for: a scheduler, a local cluster, or this process.

    Raises
    ------
    JobFailed
        When the scheduler does not answer, at the first tasks.
    """
    if not settings.scheduler and settings.workers == 0:
        yield InProcessPool()
        return
    with ExitStack() as stack:
        yield LazyPool(settings, stack)


@contextmanager
def _open(settings: Settings) -> Iterator[Pool]:
    """Open the pool the settings ask for: a scheduler, a local cluster, or this process.

    Raises
    ------
    JobFailed
        When the scheduler does not answer.
    """
    import dask
    from distributed import Client, LocalCluster

    if settings.scheduler:
        for name in ("distributed", "distributed.client"):  # what it writes about lost connections is said here
            logging.getLogger(name).setLevel(logging.CRITICAL)

        def connect(seconds: float) -> Client:
            try:
                return Client(settings.scheduler, timeout=seconds)
            except (OSError, TimeoutError, ValueError) as error:
                raise JobFailed(
                    f"the Dask scheduler does not answer ({error}).",
                    settings.scheduler,
                    "Start it, or correct the address; run again: what is finished is kept.",
                ) from error

        with _closing(DaskPool(connect, settings.workspace)) as pool:
            yield pool
        return
    # A client that is a context manager must end in the context it began in, and the pool is opened by its first tasks.
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": KEEP_MEMORY}),
        LocalCluster(
            n_workers=settings.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None would still try port 8787, and warn
            silence_logs=50,
            worker_class="distributed.Nanny",
        ) as cluster,
        _closing(DaskPool(lambda seconds: Client(cluster, timeout=seconds))) as pool,
    ):
        yield pool


@contextmanager
def _closing(pool: DaskPool) -> Iterator[DaskPool]:
    try:
        yield pool
    finally:
        with suppress(Exception):
            pool.client.close()
