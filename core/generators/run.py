"""The state of a training run: one step of it, agreement between its processes, its checkpoint."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.errors import InputError, JobFailed
from core.generators.base import Generator, Phase, seed_of


@dataclass(frozen=True)
class Plan:
    """What a run depends on, besides its volumes.

    Parameters
    ----------
    steps : int
        Training steps; a step is one pass through the phases of the generator.
    seed : int
        Source of every draw.
    batch : int
        Volumes of a micro-batch, for each process.
    accumulate : int
        Micro-batches whose gradients are added before an optimiser moves.
    data : str
        Hash of the training volumes.
    """

    steps: int
    seed: int
    batch: int
    accumulate: int = 1
    data: str = ""


class Run:
    """All state of a training run: weights, optimisers, running averages, step and losses since the last row."""

    def __init__(self, generator: Generator, plan: Plan, fabric: Fabric) -> None:
        self.generator, self.plan, self.fabric = generator.to(fabric.device), plan, fabric
        names = [name for name, child in generator.named_children() if any(True for _ in child.parameters())]
        self.optimisers: dict[str, Any] = {name: fabric.setup_optimizers(generator.optimiser(name)) for name in names}
        self.averages = {
            name: AveragedModel(
                generator.get_submodule(name), multi_avg_fn=get_ema_multi_avg_fn(rule.decay), use_buffers=True
            )
            for name, rule in generator.averaging.items()
        }
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, list[float]] = {}  # losses since the last row of the curve: total, count
        # Every volume a step sees, so that the order of volumes does not depend on the stage.
        self.draws = 1 + max(sum(p.new_batch for p in generator.phases(at)) for at in (0.0, 1 - 1e-9))

    def learn(self, batches: Tensor) -> None:
        """Take one training step on volumes (draws, accumulate, batch, 1, x, y, z)."""
        start = time.perf_counter()
        self.generator.train()
        seen = 0
        for number, phase in enumerate(self.generator.phases(self.step / self.plan.steps)):
            seen += phase.new_batch
            self._phase(number, phase, batches[seen])
        self.step += 1
        for name, rule in self.generator.averaging.items():
            if self.step > rule.start and self.step % rule.every == 0:
                self.averages[name].update_parameters(self.generator.get_submodule(name))
            elif self.step <= rule.start:
                self.averages[name].module.load_state_dict(self.generator.get_submodule(name).state_dict())
        self.seconds += time.perf_counter() - start

    def _phase(self, number: int, phase: Phase, micro_batches: Tensor) -> None:
        for name, child in self.generator.named_children():
            child.requires_grad_(name in phase.trains)
        for name in phase.trains:
            self.optimisers[name].zero_grad()
        total = 0.0
        for part, batch in enumerate(micro_batches):
            rng = torch.Generator().manual_seed(
                seed_of(self.plan.seed, self.step, number, part, self.fabric.global_rank)
            )
            with self.fabric.autocast():
                loss = phase.loss(batch.to(self.fabric.device), rng)
            self.fabric.backward(loss / len(micro_batches))
            total += float(loss.detach()) / len(micro_batches)
        if self.agreed(not np.isfinite(total)):
            found = "not finite in another process" if np.isfinite(total) else total
            what = f"the loss of {phase.name} is {found} at step {self.step}."
            raise InputError(what, self.generator.name, "Start from an earlier checkpoint, or use full precision.")
        for name in phase.trains:
            child = self.generator.get_submodule(name)
            if self.fabric.world_size > 1:
                for parameter in child.parameters():
                    if parameter.grad is not None:
                        parameter.grad = cast(Tensor, self.fabric.all_reduce(parameter.grad, reduce_op="mean"))
            if phase.clip:
                self.fabric.clip_gradients(child, self.optimisers[name], max_norm=phase.clip)
            self.optimisers[name].step()
        before = self.sums.get(phase.name, [0.0, 0.0])
        self.sums[phase.name] = [before[0] + total, before[1] + 1]

    def agreed(self, wish: bool) -> bool:
        """Return whether any process wishes it: what one does and another does not, both wait for without end."""
        if self.fabric.world_size == 1:
            return wish
        wishes = torch.tensor(float(wish), device=self.fabric.device)
        return bool(cast(Tensor, self.fabric.all_reduce(wishes, reduce_op="sum")) > 0)

    def weights(self) -> dict[str, Tensor]:
        """Return the state dict that is exported: running averages where the model has them."""
        state = dict(self.generator.state_dict())
        for name, average in self.averages.items():
            state |= {f"{name}.{key}": value for key, value in average.module.state_dict().items()}
        if type(self.generator).settle is Generator.settle:
            return state
        settled = copy.deepcopy(self.generator)
        settled.load_state_dict(state)
        settled.settle(torch.Generator().manual_seed(seed_of(self.plan.seed, self.step)))
        return dict(settled.state_dict())

    def save(self, path: Path) -> None:
        """Write everything, atomically.

        Raises
        ------
        JobFailed
            The disk is full or read-only; an earlier checkpoint stays.
        """
        state = {
            "model": self.generator.state_dict(),
            "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
            "averages": {name: a.state_dict() for name, a in self.averages.items()},
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "plan": asdict(self.plan),
            "identity": [self.generator.name, self.generator.grid.name],
        }
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            what = f"the checkpoint of step {self.step} cannot be written ({error})."
            raise JobFailed(what, str(path), "Free space, then go on with --resume; the last one is whole.") from error

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        InputError
            Truncated, or of a run with another model, grid, seed, batch or cohort.
        """
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            found = dict(zip(("model", "grid"), state["identity"], strict=True)) | state["plan"]
        except Exception as error:  # the unpickler raises whatever the bytes lead to
            what = f"not a readable training checkpoint ({type(error).__name__})."
            raise InputError(what, str(path), "Delete it to start again.") from error
        ours = {"model": self.generator.name, "grid": self.generator.grid.name} | asdict(self.plan)
        ours.pop("steps")  # a run may be made longer
        differing = [
            "other training volumes" if key == "data" else f"{key} {found[key]!r}, not {ours[key]!r}"
            for key in ours
            if found.get(key) != ours[key]
        ]
        if differing:
            remedy = "Resume with the same settings, or choose another folder."
            raise InputError(f"this run has {'; '.join(differing)}.", str(path), remedy)
        try:
            self.generator.load_state_dict(state["model"])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
            for name, average in self.averages.items():
                average.load_state_dict(state["averages"][name])
            self.step, self.seconds, self.sums = int(state["step"]), float(state["seconds"]), dict(state["sums"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            what = f"it lacks what it should hold ({error})."
            raise InputError(what, str(path), "Delete it to start again.") from error
