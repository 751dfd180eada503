"""Cost of the six generators: parameters, a training step beside a bare loop, a sample; half grid unless said.

``python -m benchmarks.generators [MODEL ...]`` prints one row a model. The bare loop runs the phases of the same
network with the same optimisers and batches, without checkpoints, curve, averages, Fabric or a data loader.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from core.generators import GENERATORS, build
from core.generators.base import Generator
from core.generators.training import Machine, Plan, train
from core.volume import HALF, template
from core.workflows import demo_checkpoint

STEPS, WARM = 4, 1


class Brains:
    """A few noisy copies of the atlas."""

    def __init__(self) -> None:
        atlas = template(HALF).data
        noise = np.random.default_rng(0).normal(0, 0.05, (8, *atlas.shape)).astype(np.float32)
        self.data = np.clip(atlas + noise * (atlas > -1), -1, 1)

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.data)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one volume."""
        return self.data[index]


def parameters(generator: Generator) -> str:
    """Return millions of parameters that sampling needs, and of all."""
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in generator.named_children()}
    needed = sum(counts[name] for name in generator.sampling)
    return f"{needed / 1e6:.2f} / {sum(counts.values()) / 1e6:.2f}"


def bare_step(name: str, brains: Brains) -> float:
    """Return the seconds of a training step in a plain loop."""
    generator = build(name, "half").train()
    optimisers = {n: generator.optimiser(n) for n, c in generator.named_children() if any(True for _ in c.parameters())}
    batch = torch.from_numpy(brains.data[: generator.batch])[:, None]
    for step in range(WARM + STEPS):
        if step == WARM:
            start = time.perf_counter()
        for phase in generator.phases(step / (WARM + STEPS)):
            for child_name, child in generator.named_children():
                child.requires_grad_(child_name in phase.trains)
            for child_name in phase.trains:
                optimisers[child_name].zero_grad()
            phase.loss(batch, torch.Generator().manual_seed(step)).backward()
            for child_name in phase.trains:
                optimisers[child_name].step()
    return (time.perf_counter() - start) / STEPS


def our_step(name: str, brains: Brains) -> float:
    """Return the seconds of a training step of the product's loop, the first left out."""
    generator, moments = build(name, "half"), []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(WARM + STEPS, 0, generator.batch)
        machine = Machine(log_every=1)
        train(generator, brains, Path(folder), plan, machine, report=lambda f, m: moments.append(time.perf_counter()))
    return (moments[-1] - moments[WARM - 1]) / STEPS


def sample_seconds(name: str) -> float:
    """Return the seconds of one volume with the model's own steps."""
    generator = build(name, "half")
    generator.filled = set(generator.sampling)
    generator.make(0, 0)
    start = time.perf_counter()
    generator.make(1, 0)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    torch.set_num_threads(2)
    brains = Brains()
    print("| model | full: sampling / all (M) | half (M) | step (s) | over bare | sample (s) | checkpoint (MB) |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or GENERATORS:
        with torch.device("meta"):
            full = parameters(build(name, "full"))
        half = parameters(build(name, "half"))
        bare, ours = bare_step(name, brains), our_step(name, brains)
        weights = demo_checkpoint(name)
        size = f"{weights.stat().st_size / 1e6:.1f}" if weights else "none"
        cells = [full, half, f"{ours:.2f}", f"{ours / bare:.2f}", f"{sample_seconds(name):.2f}", size]
        print(f"| {GENERATORS[name].label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
