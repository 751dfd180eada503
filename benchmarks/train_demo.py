"""Train one demo generator for a given time, its volumes in the memory of the device.

    python -m benchmarks.train_demo MODEL --data FOLDER --out DIR --minutes M [--batch B] [--start FILE]
        [--accelerator cuda] [--precision bf16-mixed]

What differs from ``python -m core train``: stages and learning rates go by the clock, so that any machine spends the
same shares of its time on them; gradients of the diffusion models are clipped; HA-GAN's two encoder phases, which
nothing that is exported depends on, are left out. ``assets/README.md`` says what was made with it. When that was made,
noise was drawn on the device; here it is drawn on the CPU, as in the product.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from core.generators import GENERATORS, build
from core.generators.base import Generator, Phase, read_facts
from core.generators.training import Machine, Plan, middle_planes, train
from core.volume import HALF, load_on_grid

BATCHES = {"vae-gan": 8, "alpha-wgan": 8, "ha-gan": 12, "monai-ldm": 8, "medsyn": 6, "cdpm": 8}
DIFFUSION = ("monai-ldm", "medsyn", "cdpm")
CLIP = 1.0
LEVELS = 40
STEPS = 10**6  # more than are ever made: time tells when to stop
SAMPLES = 4


class Brains:
    """Volumes of a folder on a device, in grey levels; where in its level a voxel lies is drawn anew each time."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        paths = sorted(folder.glob("*.nii.gz"))
        codes = [_codes(load_on_grid(path, HALF, rule="maximum").data) for path in paths]
        self.codes = torch.from_numpy(np.stack(codes)).to(device)
        self.rng = torch.Generator(device).manual_seed(0)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Tensor:
        """Return a volume in [-1, 1]: the background exactly -1, the brightest exactly 1."""
        codes = self.codes[index].float()
        place = torch.rand(codes.shape, generator=self.rng, device=codes.device)
        inside = (codes - 1 + place) * (2 / LEVELS) - 1
        return torch.where(codes == 0, -1.0, torch.where(codes > LEVELS, 1.0, inside))


def _codes(volume: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return 0 for the background, k + 1 for the k-th level, LEVELS + 1 for exactly 1."""
    return np.where(volume <= -1, 0, 1 + np.floor((volume + 1) * (LEVELS / 2))).astype(np.uint8)


class Clock:
    """Progress of a run by time, in [0, 1)."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return time.monotonic() - self.start >= self.seconds

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
        return [replace(phase, clip=CLIP) for phase in found] if generator.name in DIFFUSION else found

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
    parser.add_argument("--start", type=Path, help="exported weights to start from; what they lack starts anew")
    parser.add_argument("--accelerator", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = torch.device("cuda:0" if options.accelerator == "cuda" else "cpu")
    brains, generator = Brains(options.data, device), build(options.model, "half")
    if options.start:
        generator.load_checkpoint(options.start)
    clock = Clock(60 * options.minutes)
    follow(generator, clock)
    done = train(
        generator,
        brains,
        options.out,
        Plan(STEPS, 0, options.batch or BATCHES[options.model]),
        Machine(accelerator=options.accelerator, precision=options.precision, save_every=60),
        report=lambda fraction, text: print(f"{clock.progress():6.1%}", text.replace(f" of {STEPS}", ""), flush=True),
        stop=lambda: clock.over,
        facts={
            "volumes": f"{len(brains)} volumes of {options.data.name}",
            "device": options.accelerator,
            "start": f"{options.start.name} of {read_facts(options.start).get('step')} steps" if options.start else "",
        },
    )
    print(f"{done.step} steps in {done.seconds:.0f} s")
    drawn = build(options.model, "half").to(device)
    drawn.load_checkpoint(done.export)
    drawn.export(done.export, drawn.state_dict(), read_facts(done.export) | {"steps": str(done.step)})
    rows = [middle_planes(volume) for volume in drawn.sample(SAMPLES, 1)]
    rows.append(middle_planes(brains[0].cpu().numpy()))
    Image.fromarray(np.concatenate(rows)).save(options.out / "samples.png")


if __name__ == "__main__":
    main()
