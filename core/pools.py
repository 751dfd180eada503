"""Where tasks run: this process, a local Dask cluster, or any Dask scheduler. Knows no science."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.errors import JobFailed, SynthScopeError
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
WINDOW = 4  # tasks in flight per worker: enough to keep it busy, few enough to cancel fast


class Cancelled(Exception):
    """The user asked a job to stop."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task: its value, or the error in words."""

    value: Any = None
    error: str = ""


class Pool(Protocol):
    """Runs a function over many arguments, in any order, one failure at a time."""

    def map(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish."""
        ...


class InProcessPool:
    """Runs tasks here, one after the other: for tests and for `workers = 0`."""

    def map(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` in order."""
        for index, arguments in enumerate(items):
            yield index, attempt(function, *arguments)


class DaskPool:
    """Runs tasks on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Connected client.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def map(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish; a bounded number is in flight."""
        from distributed import as_completed

        waiting = iter(enumerate(items))
        places: dict[str, int] = {}
        completed = as_completed(with_results=False)
        width = max(1, len(self.client.scheduler_info(n_workers=-1)["workers"])) * WINDOW

        def submit_next() -> None:
            for index, arguments in waiting:
                future = self.client.submit(attempt, function, *arguments, retries=TASK_RETRIES, pure=False)
                places[future.key] = index
                completed.add(future)
                return

        for _ in range(width):
            submit_next()
        try:
            for future in completed:
                yield places.pop(future.key), _outcome_of(future)
                submit_next()
        finally:
            with suppress(Exception):
                self.client.cancel([f for f in completed.futures if f.key in places])


class Context:
    """What a job function is given: a pool, and a way to tell how far it is.

    Parameters
    ----------
    settings : Settings
        Settings of the process.
    pool : Pool
        Where tasks run.
    report : callable
        ``report(fraction, message)``; fraction in [0, 1] or None.
    cancelled : callable
        True once the user asked to stop.
    """

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        report: Callable[[float | None, str], None] = lambda fraction, message: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings = settings
        self.pool = pool
        self._report = report
        self._cancelled = cancelled
        self._span = (0.0, 1.0)

    def log(self, message: str) -> None:
        """Write one line to the job's log."""
        self._report(None, message)

    def progress(self, fraction: float, message: str) -> None:
        """Tell how far a task is that runs here, not on the pool."""
        low, high = self._span
        self._report(low + (high - low) * fraction, message)

    def is_cancelled(self) -> bool:
        """Whether the user asked to stop."""
        return self._cancelled()

    @contextmanager
    def stage(self, start: float, end: float) -> Iterator[None]:
        """Make `map` inside fill the share [start, end] of the progress bar."""
        outer = self._span
        width = outer[1] - outer[0]
        self._span = (outer[0] + start * width, outer[0] + end * width)
        try:
            yield
        finally:
            self._span = outer

    def map(
        self,
        title: str,
        function: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        sizes: Sequence[int] | None = None,
    ) -> list[Outcome]:
        """Run ``function`` over ``items`` on the pool.

        Parameters
        ----------
        title : str
            What the progress line calls the work.
        function : callable
            The task.
        items : sequence of tuple
            Its arguments, item by item.
        sizes : sequence of int, optional
            What each item counts for in the progress; 1 when not given.

        Returns
        -------
        list of Outcome
            In the order of ``items``; a failed item is an outcome with an error text.

        Raises
        ------
        Cancelled
            When the user asked to stop; finished items stay stored.
        """
        outcomes = [Outcome()] * len(items)
        low, high = self._span
        sizes = sizes or [1] * len(items)
        done, total = 0, sum(sizes)
        self._report(low, f"{title}: 0 of {total}")
        for index, outcome in self.pool.map(function, items):
            outcomes[index] = outcome
            done += sizes[index]
            if outcome.error:
                self.log(outcome.error)
            self._report(low + (high - low) * done / total, f"{title}: {done} of {total}")
            if self._cancelled():
                raise Cancelled(title)
        if self._cancelled():
            raise Cancelled(title)
        return outcomes


def attempt(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Run one task; its failure is data, so that the others go on."""
    try:
        return Outcome(function(*arguments))
    except SynthScopeError as error:
        return Outcome(error=str(error))
    except MemoryError:
        return Outcome(error=f"{_task_name(function, arguments)}: out of memory. Use fewer workers.")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"unexpected {type(error).__name__}: {error} (at {Path(place.filename).name}:{place.lineno})."
        return Outcome(error=f"{_task_name(function, arguments)}: {text} Please report this.")


def _task_name(function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    name = getattr(function, "__name__", "task")
    return f"{name}({', '.join(str(a)[:80] for a in arguments[1:2])})"


def _outcome_of(future: Any) -> Outcome:
    try:
        outcome: Outcome = future.result()
        return outcome
    except Exception as error:  # the worker died with the task, again and again
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

    def map(self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish."""
        if not items:
            return
        with self.lock:
            self.pool = self.pool or self.stack.enter_context(_open(self.settings))
        yield from self.pool.map(function, items)


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
        try:
            client = Client(settings.scheduler, timeout="20s")
        except (OSError, TimeoutError, ValueError) as error:
            raise JobFailed(
                f"the Dask scheduler does not answer ({error}).",
                settings.scheduler,
                "Start it, or correct the address.",
            ) from error
        try:
            yield DaskPool(client)
        finally:
            client.close()
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
    ):
        client = Client(cluster)
        try:
            yield DaskPool(client)
        finally:
            client.close()
