"""The one training loop of all generators, on Lightning Fabric.

Every draw depends on (seed, step, phase, rank) alone and a checkpoint holds all state, so a run that was killed and
resumed gives the curve of one that was not. Fabric starts the processes, places tensors, scales mixed precision and
averages over ranks; it leaves the optimiser steps to us, which several optimisers in one step need. Gradients are
averaged here rather than by DistributedDataParallel, whose hooks allow neither several passes nor the second
derivatives of a gradient penalty.
"""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.errors import InputError
from core.generators.base import EXPORT, Generator, seed_of
from core.generators.run import Plan, Run
from core.volume import Grid

CHECKPOINT, CURVE, PREVIEWS = "checkpoint.pt", "curve.csv", "previews"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class Volumes(Protocol):
    """Training volumes: (x, y, z) float32 in [-1, 1] by index; tensors may lie on the device already."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> NDArray[np.float32] | Tensor: ...


@dataclass(frozen=True)
class Machine:
    """How a run is carried out; changes no number but for rounding.

    Parameters
    ----------
    accelerator, devices, nodes : str, int, int
        As Lightning Fabric names them.
    precision : str
        "32-true", "bf16-mixed" or "16-mixed".
    loaders : int
        Processes that read volumes ahead; 0 reads between steps.
    save_every : float
        Seconds between checkpoints.
    log_every : int
        Steps averaged in one row of the curve.
    preview_every : int
        Steps between sample previews; 0 makes none.
    """

    accelerator: str = "cpu"
    devices: int = 1
    nodes: int = 1
    precision: str = "32-true"
    loaders: int = 0
    save_every: float = 300.0
    log_every: int = 10
    preview_every: int = 0


@dataclass(frozen=True)
class Trained:
    """Where a run stands: steps done of all, seconds of training, exported file."""

    step: int
    steps: int
    seconds: float
    export: Path


def train(
    generator: Generator,
    volumes: Volumes,
    out: Path,
    plan: Plan,
    machine: Machine = Machine(),
    *,
    resume: bool = False,
    report: Callable[[float, str], None] = lambda fraction, message: None,
    stop: Callable[[], bool] = lambda: False,
    facts: Mapping[str, str] | None = None,
) -> Trained:
    """Train a generator, writing checkpoint, export, curve and previews to a folder.

    Parameters
    ----------
    generator : Generator
        With random weights, or weights to start from.
    volumes : Volumes
        Training volumes on the grid of the generator.
    out : Path
        ``checkpoint.pt`` (all state), ``model.safetensors`` (what sampling needs), ``curve.csv``, ``previews/``.
    plan, machine
        See there.
    resume : bool
        Go on from the checkpoint in ``out``; without one, start. More steps than before make a run longer.
    report : callable
        ``report(fraction, message)`` after every step.
    stop : callable
        True ends the run after the step, with everything saved.
    facts : mapping, optional
        What else the header of the export says, for example what the volumes are.

    Raises
    ------
    InputError
        Batch too small for the model, too few volumes, wrong shapes, a folder with another run, a loss that is not
        finite.
    JobFailed
        A checkpoint that cannot be written; the one before stays whole.
    """
    check_plan(generator, plan, machine)
    _check_volumes(generator, volumes, plan)
    warnings.filterwarnings("ignore", "The `srun` command is available")  # Lightning's advice to who wants SLURM
    fabric = Fabric(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.nodes,
        precision=cast(Any, machine.precision),  # checked by Fabric
        strategy="ddp" if machine.devices * machine.nodes > 1 else "auto",
    )
    if machine.devices * machine.nodes > 1:
        fabric.launch()
    run = Run(generator, plan, fabric)
    out.mkdir(parents=True, exist_ok=True)
    if (out / CHECKPOINT).exists():
        if not resume:
            raise InputError("the folder holds a training run.", str(out), "Add --resume, or choose another folder.")
        run.load(out / CHECKPOINT)
    writer = _Writer(run, out, machine, report, facts or {})
    loader = DataLoader(
        _Batches(volumes, plan, run.draws, fabric),
        batch_size=None,
        sampler=range(run.step, plan.steps),
        num_workers=machine.loaders,
    )
    for batches in loader:
        run.learn(batches)
        writer.after_step()
        if run.agreed(stop()):
            break
    writer.save()
    writer.last_row()
    return Trained(run.step, plan.steps, run.seconds, out / EXPORT)


class _Batches(Dataset[Tensor]):
    """The volumes of every step: shuffled anew each epoch, every rank its own."""

    def __init__(self, volumes: Volumes, plan: Plan, draws: int, fabric: Fabric) -> None:
        self.volumes, self.plan, self.draws = volumes, plan, draws
        self.epoch, self.order = -1, np.zeros(0, np.int64)
        self.rank, self.ranks = fabric.global_rank, fabric.world_size

    def __getitem__(self, step: int) -> Tensor:
        """Return volumes (draws, accumulate, batch, 1, x, y, z) of a step."""
        shape = (self.draws, self.plan.accumulate, self.plan.batch)
        count = int(np.prod(shape))
        first = (step * self.ranks + self.rank) * count
        chosen = [self.volumes[self._index(first + k)] for k in range(count)]
        tensors = [volume if isinstance(volume, Tensor) else torch.tensor(volume) for volume in chosen]
        return torch.stack(tensors).view(*shape, 1, *chosen[0].shape)

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.volumes))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.plan.seed, epoch]).permutation(len(self.volumes))
        return int(self.order[place])


class _Writer:
    """Curve, checkpoints, exports and previews of a run; only the first process writes."""

    def __init__(
        self, run: Run, out: Path, machine: Machine, report: Callable[[float, str], None], facts: Mapping[str, str]
    ) -> None:
        self.run, self.out, self.machine, self.report, self.facts = run, out, machine, report, facts
        # The row of a last, shorter stretch belongs to a run that ended there.
        self.rows = [row for row in _rows_until(out / CURVE, run.step) if int(row["step"]) % machine.log_every == 0]
        self.saved = time.monotonic()

    def after_step(self) -> None:
        """Write what is due after a step."""
        run, machine = self.run, self.machine
        if run.step % machine.log_every == 0:
            self._add_row()
        elif run.fabric.global_rank == 0:
            self.report(run.step / run.plan.steps, f"step {run.step} of {run.plan.steps}")
        if run.fabric.global_rank == 0 and machine.preview_every and run.step % machine.preview_every == 0:
            self._preview()
        due = time.monotonic() - self.saved > machine.save_every or not (self.out / CHECKPOINT).exists()
        if run.agreed(due):
            self.save()

    def save(self) -> None:
        """Write checkpoint and export."""
        run = self.run
        if run.fabric.global_rank == 0:
            run.save(self.out / CHECKPOINT)
            facts = dict(self.facts) | {key: str(value) for key, value in asdict(run.plan).items()}
            facts |= {"step": str(run.step), "seconds": f"{run.seconds:.0f}", "precision": self.machine.precision}
            run.generator.export(self.out / EXPORT, run.weights(), facts)
        run.fabric.barrier()
        self.saved = time.monotonic()

    def last_row(self) -> None:
        """Add the losses of the last steps to the curve of a run that has ended."""
        if self.run.sums and self.run.step >= self.run.plan.steps:
            self._add_row()

    def _add_row(self) -> None:
        run = self.run
        losses = {name: f"{total / count:.6g}" for name, (total, count) in run.sums.items()}
        run.sums = {}
        if run.fabric.global_rank:
            return
        self.rows.append({"step": str(run.step), "seconds": f"{run.seconds:.1f}", **losses})
        _write_rows(self.out / CURVE, self.rows)
        shown = ", ".join(f"{name} {value}" for name, value in losses.items())
        self.report(run.step / run.plan.steps, f"step {run.step} of {run.plan.steps}: {shown}")

    def _preview(self) -> None:
        """Draw one volume with the weights as they are now and keep its middle planes."""
        generator = self.run.generator
        held = {key: value.clone() for key, value in generator.state_dict().items()}
        generator.load_state_dict(self.run.weights())
        generator.eval()
        with torch.inference_mode():
            rng = torch.Generator().manual_seed(seed_of(self.run.plan.seed, 0))
            volume = generator.draw(rng, None).float().cpu().numpy()
        generator.load_state_dict(held)
        folder = self.out / PREVIEWS
        folder.mkdir(exist_ok=True)
        partial = folder / "partial"
        Image.fromarray(middle_planes(volume)).save(partial, format="PNG")
        partial.replace(folder / f"{self.run.step:07d}.png")


def middle_planes(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the sagittal, coronal and axial middle planes side by side: (x, y, z) in [-1, 1] to (height, width)."""
    x, y, z = (n // 2 for n in volume.shape)
    planes = [np.flipud(plane.T) for plane in (volume[x], volume[:, y], volume[:, :, z])]
    height = max(plane.shape[0] for plane in planes)
    padded = [np.pad(plane, ((0, height - plane.shape[0]), (0, 0)), constant_values=-1) for plane in planes]
    grey = np.nan_to_num(np.concatenate(padded, axis=1), nan=-1.0)
    return np.asarray((np.clip(grey, -1, 1) + 1) * 127.5).astype(np.uint8)


def read_curve(out: Path) -> list[dict[str, str]]:
    """Return the rows of a run's curve: step, seconds of training, mean losses; [] before the first."""
    return _rows_until(out / CURVE, None)


def check_plan(generator: Generator, plan: Plan, machine: Machine) -> None:
    """Raise InputError when a run cannot be, whatever its volumes are."""
    name = generator.name
    if machine.precision not in PRECISIONS:
        raise InputError(f"unknown precision {machine.precision!r}.", name, f"Choose of: {', '.join(PRECISIONS)}.")
    if plan.steps < 1 or plan.accumulate < 1:
        raise InputError(f"expected 1 step or more, found {plan.steps}.", name, "Use a positive number.")
    if plan.batch < generator.least_batch:
        what = f"a batch of {plan.batch} is too small: its normalisation needs {generator.least_batch} or more."
        raise InputError(what, name, f"Use a batch of {generator.least_batch} or more.")


def _check_volumes(generator: Generator, volumes: Volumes, plan: Plan) -> None:
    least = max(2, plan.batch)
    if len(volumes) < least:
        what = f"found {len(volumes)} training volumes, but {least} or more are needed with a batch of {plan.batch}."
        raise InputError(what, generator.name, "Add volumes" + (", or lower the batch." if plan.batch > 2 else "."))
    _check_shape(volumes[0], generator.grid)


def _check_shape(volume: NDArray[np.float32] | Tensor, grid: Grid) -> None:
    if volume.shape != grid.shape:
        what = f"volumes of shape {tuple(volume.shape)}, but the {grid.name} grid has {grid.shape}."
        raise InputError(what, "training volumes", "Choose the other grid.")


def _rows_until(path: Path, step: int | None) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as table:
        return [row for row in csv.DictReader(table) if step is None or int(row["step"]) <= step]


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", newline="") as table:
        writer = csv.DictWriter(table, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
