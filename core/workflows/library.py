"""The studies a workspace knows, and making new ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import InputError
from core.settings import Settings, data_roots, refuse_outside
from core.store import LOCK_SECONDS, Store, write_json
from core.study import StudySpec, read_spec, read_study, write_spec
from core.workflows.demo import demo_folder


def known_studies(settings: Settings) -> dict[str, str]:
    """Return path of study.toml to title, the demo first, then the newest; deleted files are left out.

    Studies of one name have their folders in the title: no two titles are the same.
    """
    found = {str(demo_folder(settings) / "study.toml"): "Demo study"}
    for path in _remembered(settings):
        if Path(path).is_file():
            found.setdefault(path, _title(path))
    times = Counter(found.values())
    return {path: title if times[title] == 1 else f"{title} ({Path(path).parent})" for path, title in found.items()}


def remember_study(settings: Settings, path: str) -> str:
    """Add a study to the workspace's list; return the path of its study.toml.

    Raises
    ------
    InputError
        See `core.study.read_study`.
    """
    study = str(read_study(path).path)
    folder = Store(settings.workspace).folder()
    with _alone(folder / "studies.lock"):  # else one of two that are added at once is lost
        paths = [study, *(other for other in _remembered(settings) if other != study)]
        write_json(paths, folder / "studies.json")
    return study


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock; without it where it cannot be had in time, or at all."""
    lock = FileLock(path, timeout=LOCK_SECONDS)
    with suppress(Timeout, OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def create_study(settings: Settings, folder: str, spec: StudySpec) -> str:
    """Write study.toml into ``folder`` and remember it.

    Raises
    ------
    InputError
        A folder without parent, outside the data roots, or with a study.toml, or a study that cannot be read; then
        nothing is left.
    """
    path = Path(folder).expanduser() / "study.toml"
    refuse_outside(path)
    if not path.parent.parent.is_dir():
        raise InputError("there is no such folder.", str(path.parent.parent), "Correct the path.")
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        raise InputError("the folder has a study.toml already.", str(path), "Open it, or choose another folder.")
    write_spec(spec, path)
    try:
        return remember_study(settings, str(path))
    except InputError:
        path.unlink()
        raise


def _remembered(settings: Settings) -> list[str]:
    try:
        paths = json.loads((settings.workspace / "studies.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(path) for path in paths] if isinstance(paths, list) else []


def _title(path: str) -> str:
    file = Path(path).stat()
    return _title_of(path, file.st_mtime_ns, file.st_size, data_roots())


@lru_cache(maxsize=256)
def _title_of(path: str, time: int, size: int, roots: tuple[Path, ...]) -> str:
    """Read a study's name; a page asks for all of them several times a run."""
    del time, size, roots
    try:
        return read_spec(path).name
    except InputError:
        return f"{Path(path).parent.name} (broken study file)"
