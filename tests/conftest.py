import os
import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from core.pools import Context, InProcessPool
from core.settings import Settings
from core.volume import HALF, Volume, save, template

if "PYTEST_XDIST_WORKER" in os.environ:  # as many test processes as cores: one thread each, in their children too
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
# Children that place a handful of volumes on a UMAP would compile it for longer; this process compiles.
os.environ["NUMBA_DISABLE_JIT"] = "1"
numba.config.reload_config()  # else the compiler, which reads an environment that has changed, would do so
numba.config.DISABLE_JIT = 0


@pytest.fixture(autouse=True)
def same_main():
    """Put the main module back: AppTest leaves its page there, which processes started by spawn would then run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(workspace=tmp_path / "workspace", workers=0)


@pytest.fixture
def context(settings: Settings) -> Context:
    return Context(settings, InProcessPool())


@pytest.fixture
def half_brain() -> Volume:
    """The embedded atlas on the half grid: the smallest volume every check accepts."""
    brain = template(HALF)
    return replace(brain, data=brain.data.copy())


@pytest.fixture
def write_brains(half_brain: Volume):
    """Write n slightly different brains into a folder; return their paths."""

    def write(folder: Path, n: int, *, seed: int = 0, prefix: str = "brain") -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        paths = []
        inside = half_brain.data > -1
        for index in range(n):
            data = half_brain.data + 0.05 * rng.standard_normal(half_brain.data.shape).astype(np.float32) * inside
            path = folder / f"{prefix}-{index:02d}.nii.gz"
            save(Volume(np.clip(data, -1, 1), HALF.affine), path)
            paths.append(path)
        return paths

    return write
