"""Time, memory and agreement of one computation beside another, printed as Markdown tables."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import threadpoolctl
from numpy.typing import ArrayLike

Value = TypeVar("Value")
MIB = 2**20


@dataclass(frozen=True)
class Run:
    """What one computation returned, and what it took.

    Parameters
    ----------
    value : array-like
        Its number or numbers.
    seconds : float
        Least processor time of its repeats, all threads together: what it takes on a core of its own, however busy
        the machine is.
    peak : float
        Most memory held beside what was held before, MiB; NaN where the system does not tell.
    """

    value: ArrayLike
    seconds: float
    peak: float


def run(compute: Callable[[], ArrayLike], *, repeats: int = 1) -> Run:
    """Run a computation ``repeats`` times; the least time and the highest peak of memory count."""
    seconds, peaks = [], []
    for _ in range(repeats):
        value, took, peak = measured(compute)
        seconds.append(took)
        peaks.append(peak)
    return Run(value, min(seconds), max(peaks))


def processor_time(processes: Iterable[psutil.Process]) -> float:
    """Return the seconds that processes have used; one that has ended counts no longer."""
    seconds = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def measured(compute: Callable[[], Value]) -> tuple[Value, float, float]:
    """Return a value, the processor time in seconds and the peak of the resident memory in MiB above the start.

    Linux counts the peak of the resident memory of a process since it was last reset, whichever library took it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # memory that was freed before must not hide what is taken now
    counted = _reset_peak()
    before = psutil.Process().memory_info().rss
    start = time.process_time()
    value = compute()
    seconds = time.process_time() - start
    return value, seconds, max(0.0, (_peak() - before) / MIB) if counted else float("nan")


def difference(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Largest difference of the numbers, relative to the largest of the other side."""
    a, b = np.atleast_1d(np.asarray(ours, float)), np.atleast_1d(np.asarray(theirs, float))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def exponent(sizes: Sequence[float], amounts: Sequence[float]) -> float:
    """Power of the size with which an amount grows: slope of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def limit_threads(n: int) -> None:
    """Give the linear algebra and PyTorch of this process ``n`` threads."""
    import torch

    torch.set_num_threads(n)
    threadpoolctl.threadpool_limits(n)


def print_machine() -> None:
    """Print what the numbers were measured on, and how busy it was."""
    cores = os.cpu_count() or 1
    busy = psutil.cpu_percent(interval=2.0) / 100 * cores
    print(f"{cores} cores, {busy:.1f} of them busy with other work before the start\n", flush=True)


def print_head(*names: str) -> None:
    """Print the head of a table."""
    print_row(*names)
    print_row(*("---" for _ in names))


def print_row(*cells: str) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def shown(value: ArrayLike) -> str:
    """Write a number, or several."""
    return ", ".join(f"{v:.6g}" for v in np.atleast_1d(np.asarray(value, float)))


def mib(peak: float) -> str:
    """Write a peak of memory."""
    return "-" if np.isnan(peak) else f"{peak:.0f} MiB"


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
