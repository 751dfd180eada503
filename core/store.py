"""The workspace: content-addressed artefacts, written atomically, shared by processes and hosts.

An artefact's name is the hash of what it was made from, so work done once is never done again,
changed inputs never meet old results, and a finished file is always a whole file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from core import __version__
from core.errors import CacheCorrupt, JobFailed
from core.tables import csv_text
from core.volume import BOMB_RATIO, SMALL, Volume, load, load_labels, save

TEMPORARY = ".tmp-"  # begins the name of a file that is being written
LEFTOVER_SECONDS = 24 * 3600.0  # no writing takes so long: the writer was killed
LOCK_SECONDS = 30.0  # a holder that stalled, or whose host is gone, is waited for no longer
ROWS = 2**14  # of a table turned to text at a time


@dataclass(frozen=True)
class Kind:
    """How one kind of artefact is written and read."""

    suffix: str
    write: Callable[[Any, Path], None]
    read: Callable[[Path], Any]


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _write_npz(value: Mapping[str, np.ndarray], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{name: np.asarray(array) for name, array in value.items()})  # type: ignore[arg-type]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _write_table(value: pd.DataFrame, path: Path) -> None:
    value.to_parquet(path, write_page_checksum=True)


KINDS = {
    "json": Kind(".json", _write_json, lambda path: json.loads(path.read_text(encoding="utf-8"))),
    "npz": Kind(".npz", _write_npz, _read_npz),
    "table": Kind(".parquet", _write_table, lambda path: pd.read_parquet(path, page_checksum_verification=True)),
    "volume": Kind(".nii.gz", save, load),
    "labels": Kind(".nii.gz", save, load_labels),
}


def content_key(operation: str, version: int, inputs: Sequence[str], parameters: Mapping[str, object]) -> str:
    """Hash what an artefact is made from.

    Parameters
    ----------
    operation : str
        Name of the computation.
    version : int
        Bumped when the computation's numbers change.
    inputs : sequence of str
        Content hashes or keys of the inputs, in order.
    parameters : mapping
        JSON-able settings.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    text = json.dumps([operation, version, list(inputs), dict(parameters)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Artefacts under one workspace folder.

    Parameters
    ----------
    root : Path
        Workspace; made when missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, *names: str) -> Path:
        """Return a folder of the workspace, made when missing.

        Raises
        ------
        JobFailed
            When the workspace cannot be written.
        """
        path = self.root.joinpath(*names)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _disk_error(error, path) from error
        return path

    def path(self, kind: str, key: str) -> Path:
        """Return where the artefact ``key`` lies or will lie."""
        return self.root / "artefacts" / key[:2] / key[2:4] / (key + KINDS[kind].suffix)

    def has(self, kind: str, key: str) -> bool:
        """Tell whether the artefact exists."""
        return self.path(kind, key).is_file()

    def get(self, kind: str, key: str) -> Any:
        """Read an artefact.

        Raises
        ------
        KeyError
            When it was never computed.
        CacheCorrupt
            When it cannot be read; it has been set aside and will be computed again.
        """
        path = self.path(kind, key)
        if not path.is_file():
            raise KeyError(key)
        try:
            return KINDS[kind].read(path)
        except FileNotFoundError as error:
            raise KeyError(key) from error
        except Exception as error:  # each format has its own errors for damage
            with suppress(OSError):
                path.replace(path.with_name(path.name + ".corrupt"))
            raise CacheCorrupt(
                f"the artefact is damaged ({type(error).__name__}); it was set aside.", str(path), "Run again."
            ) from error

    def put(self, kind: str, key: str, value: Any, provenance: Mapping[str, object] | None = None) -> None:
        """Write an artefact under a temporary name, then rename: it is whole or absent.

        Raises
        ------
        JobFailed
            Disk full or workspace not writable; nothing partial stays.
        """
        path = self.path(kind, key)
        self.folder(*path.parent.relative_to(self.root).parts)
        if provenance is not None:
            record = {"code": __version__, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **provenance}
            write_atomically(path.with_name(key + ".provenance"), lambda p: _write_json(record, p))
        write_atomically(path, lambda p: KINDS[kind].write(value, p), suffix=KINDS[kind].suffix)

    def get_or_compute(
        self, kind: str, key: str, compute: Callable[[], Any], provenance: Mapping[str, object] | None = None
    ) -> Any:
        """Return the artefact, computing it when it is missing or damaged.

        Failures are not stored. A lock keeps processes from computing the same thing twice; correctness does not
        depend on it, because writing is atomic: where it cannot be had in time, or at all, work is done twice.
        """
        for _ in range(2):
            with suppress(KeyError, CacheCorrupt):
                return self.get(kind, key)
        lock_path = self.folder("locks") / f"{key}.lock"
        with alone(lock_path):
            with suppress(KeyError, CacheCorrupt):
                return self.get(kind, key)
            value = compute()
            self.put(kind, key, value, provenance)
        with suppress(OSError):
            lock_path.unlink()
        return value

    def remove_leftovers(self) -> int:
        """Delete the temporary files of writers that were killed a day ago or longer; return how many."""
        removed, oldest = 0, time.time() - LEFTOVER_SECONDS
        for path in (self.root / "artefacts").rglob(f"{TEMPORARY}*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
        return removed

    def file_hash(self, path: Path | str) -> str:
        """SHA-256 of a file's content, or of all files of a folder; remembered by size and time.

        Raises
        ------
        OSError
            When the file cannot be read.
        """
        path = Path(path).resolve()
        if path.is_dir():
            return content_key("folder", 1, [self.file_hash(p) for p in sorted(path.iterdir()) if p.is_file()], {})
        stat = path.stat()
        memo = content_key("hash", 1, [], {"path": str(path), "size": stat.st_size, "time": stat.st_mtime_ns})
        value: str = self.get_or_compute("json", memo, lambda: _sha256(path))
        return value


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock; go on without it where it cannot be had in time, or at all."""
    lock = FileLock(path, timeout=LOCK_SECONDS)
    with suppress(Timeout, OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, write: Callable[[Path], None], *, suffix: str = "") -> None:
    """Call ``write`` with a temporary path, flush it to disk and rename it to ``path``.

    Raises
    ------
    JobFailed
        Disk full or folder not writable.
    """
    temporary = path.parent / f"{TEMPORARY}{socket.gethostname()}-{uuid.uuid4().hex}{suffix or path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a result table: fixed precision, so that equal results are equal files.

    What is no Unicode, as bytes of a file name, is written as an escape.
    """

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            for start in range(0, max(len(table), 1), ROWS):
                part = table.iloc[start : start + ROWS]
                file.write(csv_text(part, float_format="%.7g", header=start == 0))

    write_atomically(path, write)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically; what is no Unicode, as bytes of a file name, is written as an escape."""
    write_atomically(path, lambda p: _write_bytes(text.encode("utf-8", "backslashreplace"), p))


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file atomically, keys sorted."""
    write_atomically(path, lambda p: _write_json(value, p))


def write_volume(volume: Volume, path: Path) -> None:
    """Write a NIfTI file atomically."""
    write_atomically(path, lambda p: save(volume, p), suffix=".nii.gz")


@dataclass(frozen=True)
class FeatureFile:
    """A features file of the command line: ``features`` (n, d), ``cases`` (n,), and what they were made with.

    ``encoder`` and ``weights`` are its name and fingerprint, "" in a file that does not say.
    """

    features: np.ndarray
    cases: tuple[str, ...]
    encoder: str = ""
    weights: str = ""


def write_features(content: FeatureFile, path: Path) -> None:
    """Write a features file atomically: plain arrays, no pickle."""
    arrays = {"features": content.features, "cases": np.array(content.cases, dtype=np.str_)}
    arrays |= {"encoder": np.array(content.encoder), "weights": np.array(content.weights)}
    write_atomically(path, lambda p: _write_npz(arrays, p))


def _check_npz(path: Path) -> None:
    """Refuse arrays that are not there, or inflate like no features, before memory is taken for them."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > max(SMALL, BOMB_RATIO * path.stat().st_size):
            raise ValueError("it inflates without end")
        for entry in entries:
            with archive.open(entry) as file:
                second = np.lib.format.read_magic(file) == (2, 0)
                read = np.lib.format.read_array_header_2_0 if second else np.lib.format.read_array_header_1_0
                shape, _, dtype = read(file)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} is truncated")


def read_features(path: Path) -> FeatureFile:
    """Read a features file of the command line; pickles are refused, never executed.

    Raises
    ------
    CacheCorrupt
        Not an npz with arrays ``features`` (n, d), finite numbers, and ``cases`` (n,).
    """
    advice = "Write it with `python -m core features`."
    try:
        _check_npz(path)
        arrays = _read_npz(path)
    except Exception as error:  # zip, zlib and numpy raise whatever the bytes lead to
        raise CacheCorrupt("not an npz of plain arrays.", str(path), advice) from error
    features, cases = arrays.get("features"), arrays.get("cases")
    if features is None or cases is None or features.ndim != 2 or cases.shape != features.shape[:1]:
        found = {name: array.shape for name, array in arrays.items()}
        raise CacheCorrupt(f"expected features (n, d) and cases (n,), found {found}.", str(path), advice)
    if features.dtype.kind not in "fiu":
        raise CacheCorrupt(f"expected numbers, found features of type {features.dtype}.", str(path), advice)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        what = f"{len(bad)} of {len(features)} rows hold NaN or Inf, the first is {cases[bad[0]]}."
        raise CacheCorrupt(what, str(path), "Leave these cases out, or extract their features again.")
    text = {name: str(arrays[name]) if name in arrays else "" for name in ("encoder", "weights")}
    return FeatureFile(features, tuple(str(case) for case in cases), **text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _disk_error(error: OSError, path: Path) -> JobFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full." if full else f"cannot write ({error.strerror or error})."
    return JobFailed(what, str(path), "Free space or choose another workspace (SYNTHSCOPE_WORKSPACE), then retry.")
