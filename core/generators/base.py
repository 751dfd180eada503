"""What all generators have in common: modules, objectives in phases, sampling, checkpoints."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from core import checkpoint
from core.errors import InputError
from core.volume import Grid

BACKGROUND = -1.0
TRAINING_STEPS = 1000  # noise levels of all diffusion models here
EXPORT = "model.safetensors"  # in the folder of a training run
DIGITS = "0123456789"


@dataclass(frozen=True)
class Phase:
    """One optimiser step within a training step: which modules move, and by which loss.

    Parameters
    ----------
    name : str
        Name of the loss in the curve.
    trains : tuple of str
        Child modules whose parameters move, each with the optimiser of its name; all others are frozen meanwhile.
    loss : callable
        ``loss(batch, rng)``; batch (b, 1, x, y, z) in [-1, 1], draws from ``rng`` alone, returns a scalar.
    new_batch : bool
        Whether the phase sees other volumes than the phase before it.
    clip : float
        Largest norm of the gradient; 0 leaves it.
    """

    name: str
    trains: tuple[str, ...]
    loss: Callable[[Tensor, torch.Generator], Tensor]
    new_batch: bool = False
    clip: float = 0.0


@dataclass(frozen=True)
class Averaging:
    """Running average of a module's weights: decay, steps between updates, first step."""

    decay: float
    every: int = 1
    start: int = 0


@dataclass(frozen=True)
class LoadReport:
    """What a checkpoint filled.

    Parameters
    ----------
    modules : tuple of str
        Child modules that now hold the file's weights.
    missing : tuple of str
        Child modules that sampling needs and that are not filled yet.
    sha256 : str
        Of the file, or of the files together.
    """

    modules: tuple[str, ...]
    missing: tuple[str, ...]
    sha256: str


class Generator(nn.Module, ABC):
    """Base of the six: its child modules are what is trained.

    Parameters
    ----------
    grid : Grid
        Grid of the volumes it makes.

    Attributes
    ----------
    name : str
        Key in `core.generators.GENERATORS`.
    sampling : tuple of str
        Child modules that sampling needs; they are what a finished training exports.
    least_batch : int
        Smallest batch that can be trained.
    batch : int
        Micro-batch when none is asked for.
    averaging : dict
        `Averaging` by child module; the average is what is exported.
    steps : int or None
        Sampling steps when none are asked for; None for one pass.
    """

    name = ""
    sampling: tuple[str, ...] = ("generator",)
    least_batch = 1
    batch = 1
    steps: int | None = None

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.averaging: dict[str, Averaging] = {}
        self.filled: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @abstractmethod
    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z) in [-1, 1], in eval mode and without gradients.

        ``rng`` is a CPU generator; without ``steps`` the model takes its own number.
        """

    @abstractmethod
    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return the published optimiser of a child module."""

    @abstractmethod
    def phases(self, progress: float) -> Sequence[Phase]:
        """Return the phases of a training step; ``progress`` in [0, 1) tells which stage a two-stage model is in."""

    def calls(self, steps: int | None) -> int:
        """Return how many network evaluations one volume takes."""
        return 1

    def settle(self, rng: torch.Generator) -> None:
        """Bring what sampling needs besides trained weights, as statistics of normalisation, in line with them."""

    def translate(self, module: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring published names of a child module's tensors to ours; unknown names stay as they are."""
        return tensors

    def files(self, folder: Path) -> list[Path]:
        """Return the weight files of a folder in the order to load: the export of a run, of iterations the newest."""
        if read_facts(folder / EXPORT):
            return [folder / EXPORT]
        newest: dict[str, Path] = {}
        for path in sorted((p for p in folder.iterdir() if p.suffix in checkpoint.SUFFIXES), key=_iteration):
            newest[path.stem.rstrip(DIGITS)] = path
        return sorted(newest.values())

    def sample(self, n: int, seed: int, steps: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Make volumes one by one; the i-th depends on (weights, seed, i, steps) alone.

        Parameters
        ----------
        n : int
            Number of volumes.
        seed : int
            Seed.
        steps : int, optional
            Sampling steps of a diffusion model; its own number without it.

        Yields
        ------
        array, shape (x, y, z)
            float32, in [-1, 1].

        Raises
        ------
        InputError
            No weights loaded, n or steps below 1, steps for a model without, or NaN in a volume.
        """
        self.check_request(n, steps)
        for index in range(n):
            yield self.make(index, seed, steps)

    def make(self, index: int, seed: int, steps: int | None = None) -> NDArray[np.float32]:
        """Return the volume of one index of `sample`; see there."""
        self.check_request(1, steps)
        self.eval()
        rng = torch.Generator().manual_seed(seed_of(seed, index))
        with torch.inference_mode():
            volume = self.draw(rng, steps).float().cpu().numpy()
        if not np.isfinite(volume).all():
            raise InputError(f"volume {index} holds NaN or Inf.", self.name, "Use an earlier checkpoint.")
        return np.clip(volume, -1.0, 1.0)

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Fill child modules from a weight file or a folder of them; never runs code in it.

        Parameters
        ----------
        path : path
            Published container (bare, ``model``, ``state_dict``, accelerate folder), or one exported here. Which child
            module a file belongs to is found from the names in it.

        Raises
        ------
        InputError
            Missing, truncated, of another model or grid, missing or unexpected tensors, NaN; nothing is changed then.
        """
        path = Path(path)
        if not path.exists():
            raise InputError("there is no such checkpoint.", str(path), "Check the path.")
        files = self.files(path) if path.is_dir() else [path]
        if not files:
            raise InputError("no weight file in this folder.", str(path), f"Expected {checkpoint.SUFFIXES}.")
        found: dict[str, dict[str, Tensor]] = {}
        for file in files:
            self._check_facts(file)
            found |= self._split(checkpoint.read(file), file)
        for module, tensors in found.items():
            checkpoint.load(self.get_submodule(module), tensors)
        self.filled |= set(found)
        missing = tuple(m for m in self.sampling if m not in self.filled)
        return LoadReport(tuple(found), missing, checkpoint.sha256(files))

    def export(self, path: Path, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
        """Write the tensors sampling needs in half precision as safetensors, atomically; ``facts`` go into the header.

        Parameters
        ----------
        path : Path
            File to write.
        state : mapping
            State dict of this model, or of its running average.
        facts : mapping
            How it was trained.
        """
        kept = {k: _halved(v) for k, v in state.items() if k.split(".")[0] in self.sampling}
        header = {**facts, "model": self.name, "grid": self.grid.name}
        checkpoint.write(kept, path, {"facts": json.dumps(header)})

    def check_request(self, n: int, steps: int | None) -> None:
        """Raise InputError when so many volumes or steps cannot be made, or weights are missing; see `sample`."""
        if n < 1:
            raise InputError(f"expected 1 volume or more, found {n}.", "n", "Ask for at least one.")
        if steps is not None and self.steps is None:
            raise InputError("this model makes a volume in one pass.", "steps", "Leave the steps out.")
        if steps is not None and not 1 <= steps <= TRAINING_STEPS:
            what = f"expected 1 to {TRAINING_STEPS} steps, found {steps}."
            raise InputError(what, "steps", f"{self.name} uses {self.steps}.")
        missing = [m for m in self.sampling if m not in self.filled]
        if missing:
            raise InputError(f"no weights for {', '.join(missing)} yet.", self.name, "Load a checkpoint, or train.")

    def _check_facts(self, file: Path) -> None:
        """Refuse an export of another model or grid by its header: the message is clearer than one of shapes."""
        facts = read_facts(file)
        for key, ours in (("model", self.name), ("grid", self.grid.name)):
            if facts.get(key, ours) != ours:
                what = f"a checkpoint of {key} {facts[key]}, not of {ours}."
                raise InputError(what, str(file), f"Choose {key} {facts[key]}, or another file.")

    def _split(self, tensors: dict[str, Tensor], file: Path) -> dict[str, dict[str, Tensor]]:
        """Tell the child modules whose tensors these are; raises InputError when they do not fit exactly."""
        names = [name for name, _ in self.named_children()]
        heads = {name.split(".")[0] for name in tensors}
        if heads <= set(names) and heads:
            parts = {
                n: {k.removeprefix(f"{n}."): v for k, v in tensors.items() if k.startswith(f"{n}.")} for n in heads
            }
        else:
            translated = {n: self.translate(n, dict(tensors)) for n in names}
            best = min(names, key=lambda n: len(checkpoint.misfits(self.get_submodule(n), translated[n])))
            parts = {best: translated[best]}
        for name, part in parts.items():
            checkpoint.refuse_misfits(
                self.get_submodule(name), part, file, f"{self.name} ({name}, {self.grid.name} grid)"
            )
        return parts


def read_facts(file: Path) -> dict[str, str]:
    """Return what an exported checkpoint says of its training; {} for files of others."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    try:
        with safe_open(file, "pt") as stored:
            facts = json.loads((stored.metadata() or {}).get("facts", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return {}  # reading the tensors tells what is wrong with the file
    return {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}


def seed_of(*numbers: int) -> int:
    """Return one 63-bit seed for a tuple of numbers ≥ 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def normal(shape: Sequence[int], rng: torch.Generator, device: torch.device | str) -> Tensor:
    """Draw from N(0, 1) on the CPU, so that every device gets the same numbers."""
    return torch.randn(*shape, generator=rng).to(device)


def uniform(shape: Sequence[int], rng: torch.Generator, device: torch.device | str) -> Tensor:
    """Draw from U(0, 1) on the CPU."""
    return torch.rand(*shape, generator=rng).to(device)


def _iteration(path: Path) -> int:
    """Return the number at the end of a file's name."""
    return int(path.stem[len(path.stem.rstrip(DIGITS)) :] or 0)


def random_crops(batch: Tensor, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """Cut one crop at a random place out of each volume of (b, 1, x, y, z)."""
    crops = []
    for volume in batch:
        for axis, (side, size) in enumerate(zip(batch.shape[2:], shape, strict=True), start=1):
            volume = volume.narrow(axis, int(torch.randint(0, side - size + 1, (1,), generator=rng)), size)
        crops.append(volume)
    return torch.stack(crops)


def _halved(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
