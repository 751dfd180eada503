"""Tasks, what becomes of them, and what a job is given to run them. Knows no science."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.errors import SynthScopeError
from core.settings import Settings


class Cancelled(Exception):
    """The user asked a job to stop."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task: its value, or the error in words."""

    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Needs:
    """What tasks need of a worker: a graphics card, and files or folders that it sees."""

    gpu: bool = False
    paths: tuple[str, ...] = ()


NOTHING = Needs()


class Pool(Protocol):
    """Runs a function over many arguments, in any order, one failure at a time."""

    def map(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], needs: Needs = NOTHING
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` as tasks finish."""
        ...


class InProcessPool:
    """Runs tasks here, one after the other: for tests and for `workers = 0`."""

    def map(
        self, function: Callable[..., Any], items: Sequence[tuple[Any, ...]], needs: Needs = NOTHING
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield ``(index, outcome)`` in order."""
        del needs
        for index, arguments in enumerate(items):
            yield index, attempt(function, *arguments)


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
        self._paths: set[str] = set()

    def share(self, *paths: Path | str) -> None:
        """Name files and folders that the tasks will read or write: a worker that does not see them is refused."""
        self._paths |= {str(path) for path in paths}

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
        *,
        network: bool = False,
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
        network : bool
            Whether the task computes on the device of the settings.

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
        needs = Needs(network and self.settings.device.startswith("cuda"), tuple(sorted(self._paths)))
        for index, outcome in self.pool.map(function, items, needs):
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
