"""Settings of this process; the only reader of the environment."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError


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
    workspace = os.environ.get("SYNTHSCOPE_WORKSPACE", "~/.synthscope")
    return Settings(
        workspace=Path(workspace).expanduser().resolve(),
        scheduler=os.environ.get("SYNTHSCOPE_SCHEDULER", ""),
        device=os.environ.get("SYNTHSCOPE_DEVICE", "cpu"),
        workers=_count("SYNTHSCOPE_WORKERS", cores),
        threads=max(1, _count("SYNTHSCOPE_THREADS", 1)),
        synthseg=os.environ.get("SYNTHSCOPE_SYNTHSEG", "") or _find_synthseg(),
        demo_cases=max(2, _count("SYNTHSCOPE_DEMO_CASES", 24)),
        roles=os.environ.get("SYNTHSCOPE_ROLES", ""),
    )


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
        "SYNTHSCOPE_ROLES": settings.roles,
    }


def _find_synthseg() -> str:
    freesurfer = os.environ.get("FREESURFER_HOME", "")
    return shutil.which("mri_synthseg") or (shutil.which("mri_synthseg", path=f"{freesurfer}/bin") or "")


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise InputError(f"expected a whole number ≥ 0, found {text!r}.", name, "Correct or unset the variable.")
    return int(text)
