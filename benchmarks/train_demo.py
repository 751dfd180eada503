"""Train one demo generator for a given time, the volumes in the memory of the device.

    python -m benchmarks.train_demo MODEL --data FOLDER --out DIR --minutes M [--batch B] [--accelerator cuda]

What differs from ``python -m core train``: stages and learning rates go by the clock, so that any machine spends the
same shares of its time on them; gradients of the diffusion models are clipped; HA-GAN's two encoder phases, which
nothing that is exported depends on, are left out. ``assets/README.md`` says what was made with it.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from core.generators import GENERATORS, build
from core.generators.base import Generator, Phase
from core.generators.training import EXPORT, Machine, Plan, middle_planes, train
from core.volume import HALF, load_on_grid

BATCHES = {"vae-gan": 8, "alpha-wgan": 8, "ha-gan": 12, "monai-ldm": 8, "medsyn": 6, "cdpm": 8}
DIFFUSION = ("monai-ldm", "medsyn", "cdpm")
CLIP = 1.0
STEPS = 10**6  # more than are ever made: time tells when to stop
SAMPLES = 4


class Brains:
    """Volumes of a folder, kept as bytes; what lies between background and brightest is dithered in each draw."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob("*.nii.gz"))
        volumes = [load_on_grid(path, HALF, rule="maximum").data for path in paths]
        self.codes = np.stack([np.ceil((v + 1) * 127.5).astype(np.uint8) for v in volumes])
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """Return a volume in [-1, 1], background exactly -1."""
        codes = self.codes[index].astype(np.float32)
        dithered = (codes - self.rng.random(codes.shape, np.float32)) / 127.5 - 1
        return np.where(codes == 0, -1.0, np.where(codes == 255, 1.0, dithered)).astype(np.float32)


class Clock:
    """Progress of a run by time, in [0, 1)."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds

    def progress(self) -> float:
        """Return the share of the time that has passed."""
        return min((time.monotonic() - self.start) / self.seconds, 1 - 1e-9)


def rate_factor(name: str, module: str, progress: float, share: float) -> float:
    """Return the factor of a learning rate: diffusion warms up and falls by a cosine, GANs fall at the end."""
    if name == "monai-ldm":
        latent = module == "denoiser"
        progress = max((progress - share) / (1 - share), 0.0) if latent else min(progress / share, 1.0)
    if name in DIFFUSION:
        late = max(0.0, (progress - 0.6) / 0.4)
        return min(1.0, 0.05 + progress / 0.02) * (0.04 + 0.48 * (1 + math.cos(math.pi * late)))
    return 1.0 - 0.9 * max(0.0, (progress - 0.7) / 0.3)


def follow(generator: Generator, clock: Clock) -> None:
    """Let stages and learning rates of a generator go by the clock."""
    make, phases = generator.optimiser, generator.phases
    share = float(getattr(getattr(generator, "config", None), "share", 1.0))
    made: list[tuple[str, torch.optim.Optimizer, list[float]]] = []

    def optimiser(module: str) -> torch.optim.Optimizer:
        one = make(module)
        made.append((module, one, [group["lr"] for group in one.param_groups]))
        return one

    def timed(progress: float) -> Sequence[Phase]:
        now = clock.progress()
        for module, one, rates in made:
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = rate * rate_factor(generator.name, module, now, share)
        found = [*phases(now)][: 2 if generator.name == "ha-gan" else None]
        if generator.name not in DIFFUSION:
            return found
        return [Phase(p.name, p.trains, p.loss, p.new_batch, CLIP) for p in found]

    generator.optimiser = optimiser  # type: ignore[method-assign]
    generator.phases = timed  # type: ignore[method-assign]


def main() -> None:
    """Train, export, draw samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=list(GENERATORS))
    parser.add_argument("--data", type=Path, required=True, help="folder of half-grid volumes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--accelerator", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    brains, generator = Brains(options.data), build(options.model, "half")
    clock = Clock(60 * options.minutes)
    follow(generator, clock)
    plan = Plan(STEPS, 0, options.batch or BATCHES[options.model])
    done = train(
        generator,
        brains,
        options.out,
        plan,
        Machine(accelerator=options.accelerator, save_every=60),
        report=lambda fraction, message: print(f"{clock.progress():6.1%} {message}", flush=True),
        stop=lambda: clock.progress() >= 1 - 1e-9,
        facts={"volumes": f"{len(brains)} volumes of {options.data.name}", "device": options.accelerator},
    )
    print(f"{done.step} steps in {done.seconds:.0f} s")
    drawn = build(options.model, "half")
    drawn.load_checkpoint(options.out / EXPORT)
    rows = [middle_planes(volume) for volume in drawn.sample(SAMPLES, 1)]
    Image.fromarray(np.concatenate([*rows, middle_planes(brains[0])])).save(options.out / "samples.png")


if __name__ == "__main__":
    main()
