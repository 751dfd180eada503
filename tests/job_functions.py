"""Functions for tests of jobs; they live in a module because workers import them by name."""

import os
import time
from pathlib import Path


def square(settings, value):
    del settings
    if value < 0:
        raise ValueError("negative")
    return value * value


def record_run(folder: str, name: str, seconds: float) -> str:
    """Leave one line for each time this case was computed, and remember it like the store does."""
    done = Path(folder) / f"{name}.done"
    if not done.exists():
        time.sleep(seconds)
        with (Path(folder) / "runs.txt").open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        done.touch()
    return name


def die_once(folder: str) -> int:
    """Kill the worker process the first time."""
    marker = Path(folder) / "died"
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    return os.getpid()


def die_always(folder: str) -> None:
    del folder
    os.kill(os.getpid(), 9)


def variable(name: str, seconds: float) -> str:
    """Tell which worker this is."""
    time.sleep(seconds)
    return os.environ.get(name, "")


def die_every_second(folder: str, value: int) -> int:
    """Kill the worker process at the first try of every second value."""
    marker = Path(folder) / f"died-{value}"
    if value % 2 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), 9)
    return value
