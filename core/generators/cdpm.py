"""cDPM: a conditional diffusion model that makes a volume in groups of slices, each given slices already made.

Peng et al., MICCAI 2023, doi 10.1007/978-3-031-43993-3_2. The slices are axial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core import checkpoint
from core.errors import InputError
from core.generators import diffusion
from core.generators.base import BACKGROUND, Averaging, Generator, LoadReport, Phase, normal
from core.generators.slice_unet import WIDTHS, CDPMConfig, SliceUNet
from core.volume import Grid

HALF = CDPMConfig(
    channels=32,
    multipliers=(1, 2, 3),
    blocks=1,
    groups=8,
    attention=(4,),  # slices that agree only in the middle of the network make stripes
    rows=(4, 88),
    slices=(3, 66),
    frames=12,
    advance=9,
    predict_clean=True,
    ancestral=False,
    steps=6,
    rate=5e-4,
    averaging=Averaging(0.998, start=100),
)


class CDPM(Generator):
    """Conditional diffusion on groups of slices; volumes are made from below, each stage given the last slices."""

    name = "cdpm"
    sampling = ("denoiser",)

    def __init__(self, grid: Grid, config: CDPMConfig | None = None) -> None:
        super().__init__(grid)
        self.config = config or (CDPMConfig() if grid.name == "full" else HALF)
        self.steps = self.config.steps
        self.averaging = {"denoiser": self.config.averaging}
        self.alphabar = diffusion.linear_alphabar(*self.config.betas)
        self.denoiser = SliceUNet(self.config)

    def optimiser(self, module: str) -> torch.optim.Optimizer:
        """Return AdamW without decay."""
        return torch.optim.AdamW(self.denoiser.parameters(), lr=self.config.rate, weight_decay=0.0)

    def phases(self, progress: float) -> list[Phase]:
        """Return the one phase."""
        return [Phase("denoiser", ("denoiser",), self._loss)]

    def stages(self) -> list[tuple[list[int], list[int]]]:
        """Return observed and new slices of every stage; slice 0 is the blank one below the volume."""
        total, seen = self.config.slices[1] + 1, self.config.frames - self.config.advance
        starts = range(1, total, self.config.advance)
        return [(list(range(max(0, s - seen), s)), list(range(s, min(s + self.config.advance, total)))) for s in starts]

    def calls(self, steps: int | None) -> int:
        """Return steps times stages."""
        return (steps or self.config.steps) * len(self.stages())

    def draw(self, rng: torch.Generator, steps: int | None) -> Tensor:
        """Return one volume (x, y, z)."""
        times = diffusion.spread_times(steps or self.config.steps)
        height, width = self.config.rows[1], self.grid.shape[0]
        stack = torch.full((1, self.config.slices[1] + 1, 1, height, width), BACKGROUND, device=self.device)
        for observed, new in self.stages():
            stack[:, new] = self._make(stack[:, observed], observed, new, times, rng)
        return self._unstack(stack[0, 1:, 0])

    def files(self, folder: Path) -> list[Path]:
        """Return the latest averaged weights of a published folder, or what else there is."""
        averaged = sorted(folder.glob("ema_*.pt"))
        return averaged[-1:] or super().files(folder)

    def load_checkpoint(self, path: Path | str) -> LoadReport:
        """Fill the network, after rebuilding it as the file's ``config`` says where it has one; see the base."""
        before = self.config, self.denoiser
        self.config = self._as_trained(Path(path))
        if self.config != before[0]:
            self.denoiser = SliceUNet(self.config).to(self.device)
        try:
            return super().load_checkpoint(path)
        except InputError:
            self.config, self.denoiser = before
            raise

    def _as_trained(self, path: Path) -> CDPMConfig:
        files = self.files(path) if path.is_dir() else [path]
        known = self.grid.name == "full" and files and files[-1].is_file()  # published files are of the full grid
        settings = checkpoint.read_settings(files[-1]) if known else {}
        return _published_config(settings, self.config, path)

    def _loss(self, batch: Tensor, rng: torch.Generator) -> Tensor:
        stacks = self._stack(batch)  # (b, slices, 1, y, x)
        clean, observed, target, indices = draw_slices(stacks, self.config.frames, rng)
        time = torch.randint(0, diffusion.TRAINING_STEPS, (len(batch),), generator=rng)
        noise = normal(clean.shape, rng, batch.device)
        noisy = diffusion.noised(clean, noise, self.alphabar[time])
        predicted = self.denoiser(noisy, clean, observed, target, time.to(batch.device), indices)
        counts = (1 - observed)[:, :, None, None, None]
        goal = clean if self.config.predict_clean else noise
        return ((predicted - goal).square() * counts).mean()

    def _make(
        self, given: Tensor, observed: list[int], new: list[int], times: list[int], rng: torch.Generator
    ) -> Tensor:
        """Denoise new slices given others; (1, new, 1, y, x)."""
        seen, shape = len(observed), (1, len(new), *given.shape[2:])
        mask = torch.tensor([[1.0] * seen + [0.0] * len(new)], device=given.device)
        indices = torch.tensor([observed + new], device=given.device)
        x = normal(shape, rng, given.device)
        for time, alphabar, before in diffusion.pairs(self.alphabar, times):
            both = torch.cat([given, x], 1)
            at = torch.tensor([time], device=given.device)
            clean = self.denoiser(both, both, mask, 1 - mask, at, indices)[:, seen:]
            if not self.config.predict_clean:
                clean = diffusion.without_noise(x, clean, alphabar)
            clean = clean.clamp(-1, 1)
            if self.config.ancestral:
                x = diffusion.ancestral_step(x, clean, alphabar, before, normal(shape, rng, given.device))
            else:
                x = diffusion.ddim_step(x, clean, alphabar, before)
        return x

    def _stack(self, batch: Tensor) -> Tensor:
        """Turn volumes (b, 1, x, y, z) into slices (b, 1 + z, 1, y, x), a blank one first."""
        (row, rows), (first, count) = self.config.rows, self.config.slices
        slices = batch[:, :, :, row : row + rows, first : first + count].permute(0, 4, 1, 3, 2)
        return F.pad(slices, (0, 0, 0, 0, 0, 0, 1, 0), value=BACKGROUND)

    def _unstack(self, slices: Tensor) -> Tensor:
        """Put slices (z, y, x) back into a volume of background."""
        (row, rows), (first, count) = self.config.rows, self.config.slices
        volume = torch.full(self.grid.shape, BACKGROUND, device=slices.device)
        volume[:, row : row + rows, first : first + count] = slices.permute(2, 1, 0)
        return volume


def draw_indices(total: int, frames: int, rng: torch.Generator) -> list[int]:
    """Draw 1 to ``frames`` slice indices below ``total`` at an even spacing, itself drawn on a logarithmic scale."""
    count = int(torch.randint(1, frames + 1, (1,), generator=rng))
    u, v = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
    spacing = math.exp(u * math.log(total / (count - 0.999)))
    while spacing * (count - 1) >= total:  # rounding alone can lead here
        spacing *= 0.999
    start = v * (total - spacing * (count - 1))
    return [int(start + i * spacing) for i in range(count)]


def draw_roles(total: int, frames: int, rng: torch.Generator) -> tuple[list[int], list[int]]:
    """Draw which slices are observed and which are targets, together at most ``frames``."""
    roles: tuple[list[int], list[int]] = ([], list(dict.fromkeys(draw_indices(total, frames, rng))))
    while True:
        role = roles[int(torch.randint(0, 2, (1,), generator=rng))]
        new = [i for i in dict.fromkeys(draw_indices(total, frames, rng)) if i not in roles[0] and i not in roles[1]]
        if len(roles[0]) + len(roles[1]) + len(new) > frames:
            return roles
        role += new


def draw_slices(stacks: Tensor, frames: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the slices of a training step from stacks (b, slices, …).

    Returns
    -------
    tuple of Tensor
        Slices (b, frames, …); whether observed, whether target, and the index, each (b, frames). Places left over are
        filled with slices of the next stack of the batch, neither observed nor target.
    """
    total = stacks.shape[1]
    clean, observed, target = [], torch.zeros(len(stacks), frames), torch.zeros(len(stacks), frames)
    indices = torch.randint(0, total, (len(stacks), frames), generator=rng)
    for i, stack in enumerate(stacks):
        given, wanted = draw_roles(total, frames, rng)
        own = len(given) + len(wanted)
        indices[i, :own] = torch.tensor(given + wanted)
        observed[i, : len(given)] = 1
        target[i, len(given) : own] = 1
        other = stacks[(i + 1) % len(stacks)]
        clean.append(torch.cat([stack[indices[i, :own]], other[indices[i, own:]]]))
    device = stacks.device
    return torch.stack(clean), observed.to(device), target.to(device), indices.to(device)


def _published_config(settings: Mapping[str, object], ours: CDPMConfig, path: Path) -> CDPMConfig:
    """Return our configuration with the sizes of a published one."""
    if not settings:
        return ours
    try:
        size = int(str(settings["image_size"]))
        frames = int(str(settings.get("max_frames", ours.frames)))
        factors = tuple(size // int(part) for part in str(settings["attention_resolutions"]).split(","))
        return replace(
            ours,
            channels=int(str(settings["num_channels"])),
            multipliers=WIDTHS[size],
            blocks=int(str(settings["num_res_blocks"])),
            heads=int(str(settings["num_heads"])),
            groups=CDPMConfig.groups,
            attention=factors,
            frames=frames,
            advance=frames // 2,
            predict_clean=bool(settings.get("predict_xstart", False)),
        )
    except (KeyError, ValueError, ZeroDivisionError) as error:
        what = f"its config does not describe a cDPM network ({error})."
        raise InputError(what, str(path), "Choose the model the file belongs to, or the file of this model.") from error
