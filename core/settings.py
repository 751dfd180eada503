"""Settings of this process; the only reader of the environment."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.errors import InputError

LOOK_SECONDS = 10.0  # until a program that was installed meanwhile is found
PACKAGED = tuple(Path(__file__).resolve().parents[1] / name for name in ("assets", "data"))


@dataclass(frozen=True)
class Settings:
    """Where to keep results and how to compute them.

    Parameters
    ----------
    workspace : Path
        Folder of cached artefacts and job records (``SYNTHSCOPE_WORKSPACE``).
    scheduler : str
        Address of a running Dask scheduler, or "" for a local cluster
        (``SYNTHSCOPE_SCHEDULER``).
    device : str
        Torch device of the networks (``SYNTHSCOPE_DEVICE``): "cpu", "cuda", "cuda:1".
    workers : int
        Worker processes of the local cluster (``SYNTHSCOPE_WORKERS``); 0 computes
        in the calling process.
    threads : int
        Threads of one worker process (``SYNTHSCOPE_THREADS``).
    synthseg : str
        SynthSeg's program or command line (``SYNTHSCOPE_SYNTHSEG``); without the variable, ``mri_synthseg`` where
        ``PATH`` or ``FREESURFER_HOME`` has it; "" when there is none.
    demo_cases : int
        Brains of each cohort of the demo study (``SYNTHSCOPE_DEMO_CASES``).
    data_roots : tuple of Path
        Folders that data may be read from and results written to, besides the workspace (``SYNTHSCOPE_DATA_ROOTS``);
        () allows every folder.
    roles : str
        File of people's roles on a server with login (``SYNTHSCOPE_ROLES``); see core/roles.py.
    """

    workspace: Path
    scheduler: str = ""
    device: str = "cpu"
    workers: int = 2
    threads: int = 1
    synthseg: str = ""
    demo_cases: int = 24
    data_roots: tuple[Path, ...] = ()
    roles: str = ""


def from_environment() -> Settings:
    """Read the settings from ``SYNTHSCOPE_*`` variables.

    Returns
    -------
    Settings

    Raises
    ------
    InputError
        When a number is not one.
    """
    cores = os.cpu_count() or 1
    return Settings(
        workspace=_workspace(),
        scheduler=os.environ.get("SYNTHSCOPE_SCHEDULER", ""),
        device=os.environ.get("SYNTHSCOPE_DEVICE", "cpu"),
        workers=_count("SYNTHSCOPE_WORKERS", cores),
        threads=max(1, _count("SYNTHSCOPE_THREADS", 1)),
        synthseg=os.environ.get("SYNTHSCOPE_SYNTHSEG", "") or _find_synthseg(),
        demo_cases=max(2, _count("SYNTHSCOPE_DEMO_CASES", 24)),
        data_roots=data_roots(),
        roles=os.environ.get("SYNTHSCOPE_ROLES", ""),
    )


def refuse_outside(path: Path | str) -> None:
    """Refuse a path that leads, by itself, by ``..`` or through a symlink, out of the data roots and the workspace.

    Without ``SYNTHSCOPE_DATA_ROOTS`` every path is allowed. What comes with the installation always is.

    Raises
    ------
    InputError
    """
    roots = data_roots()
    if not roots:
        return
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symlinks, a null byte
        raise InputError("the path leads nowhere.", str(path), "Correct it.") from error
    if not any(real.is_relative_to(root) for root in (*roots, _workspace(), *PACKAGED)):
        raise InputError(
            "the path leads outside the data roots of this installation.",
            str(path),
            f"Move it into one of them, or add its folder to SYNTHSCOPE_DATA_ROOTS: {', '.join(map(str, roots))}.",
        )


def refuse_scan_outside(path: Path | str) -> None:
    """As `refuse_outside`, and for a folder, as of a DICOM series, also every file that lies directly in it."""
    refuse_outside(path)
    if data_roots() and Path(path).is_dir():
        for item in Path(path).iterdir():
            refuse_outside(item)


def data_roots() -> tuple[Path, ...]:
    """Return the folders of ``SYNTHSCOPE_DATA_ROOTS``."""
    listed = os.environ.get("SYNTHSCOPE_DATA_ROOTS", "").split(os.pathsep)
    return tuple(Path(folder).expanduser().resolve() for folder in listed if folder.strip())


def _workspace() -> Path:
    return Path(os.environ.get("SYNTHSCOPE_WORKSPACE", "~/.synthscope")).expanduser().resolve()


def child_environment(settings: Settings) -> dict[str, str]:
    """Return an environment that makes a child process use the same settings."""
    return {
        **os.environ,
        "SYNTHSCOPE_WORKSPACE": str(settings.workspace),
        "SYNTHSCOPE_SCHEDULER": settings.scheduler,
        "SYNTHSCOPE_DEVICE": settings.device,
        "SYNTHSCOPE_WORKERS": str(settings.workers),
        "SYNTHSCOPE_THREADS": str(settings.threads),
        "SYNTHSCOPE_SYNTHSEG": settings.synthseg,
        "SYNTHSCOPE_DEMO_CASES": str(settings.demo_cases),
        "SYNTHSCOPE_DATA_ROOTS": os.pathsep.join(map(str, settings.data_roots)),
        "SYNTHSCOPE_ROLES": settings.roles,
    }


def _find_synthseg() -> str:
    recently = int(time.monotonic() / LOOK_SECONDS)
    return _program(os.environ.get("PATH", ""), os.environ.get("FREESURFER_HOME", ""), recently)


@lru_cache(maxsize=4)
def _program(path: str, freesurfer: str, recently: int) -> str:
    """Look for SynthSeg in the folders of ``path``; a page asks for the settings dozens of times a run."""
    del path, recently
    return shutil.which("mri_synthseg") or (shutil.which("mri_synthseg", path=f"{freesurfer}/bin") or "")


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise InputError(f"expected a whole number ≥ 0, found {text!r}.", name, "Correct or unset the variable.")
    return int(text)
