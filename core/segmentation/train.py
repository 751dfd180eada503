"""Training of the embedded segmentation network: ``python -m core.segmentation.train --labels DIR --out DIR``.

Every step draws a training anatomy, deforms it, renders an image and learns its labels; the draws depend on (seed,
step) alone, so a run that was interrupted and resumed gives the losses of one that was not. Three of the people are
held out for validation.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from core.errors import InputError, SynthScopeError
from core.segmentation.labelmaps import (
    CORTEX,
    FIRST_PARCEL,
    N_CODES,
    STRUCTURES,
    Codes,
    Person,
    mirror_of_code,
    parcel_of_code,
    prepare,
    structure_of_code,
    template_person,
)
from core.segmentation.network import N_PARCELS, N_STRUCTURES, PRIOR_SHAPE, SegmentationNet, save_weights
from core.segmentation.synthesis import as_is, deform, render
from core.volume import FULL, HALF, Grid, grid_named

TEMPLATE_SHARE = 0.2
LOWERING = 0.25  # the last part of the run, in which the learning rate falls to zero
WARM_UP = 30
FULL_ROWS = 300_000  # voxels of one full-grid image that enter the loss


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides the label maps.

    Parameters
    ----------
    grid : Grid
        Grid to train on.
    steps : int
        Images to learn from.
    seed : int
        Source of every draw.
    rate : float
        Learning rate before it is lowered.
    averaging : float
        Decay of the running average of the weights, which is what is validated and exported.
    """

    grid: Grid
    steps: int
    seed: int
    rate: float = 2e-3
    averaging: float = 0.99


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Image (1, x, y, z) and codes (voxels, 1 or 8) of every step."""

    def __init__(self, people: Sequence[Person], settings: Settings) -> None:
        self.people, self.settings = list(people), settings

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the example of one step."""
        rng = np.random.default_rng([self.settings.seed, step])
        people = [p for p in self.people if p.texture is None]
        textured = [p for p in self.people if p.texture is not None]
        pool = textured if textured and (not people or rng.random() < TEMPLATE_SHARE) else people
        anatomy = deform(pool[int(rng.integers(len(pool)))], rng)
        image, codes = render(anatomy, self.settings.grid, rng)
        return torch.from_numpy(image)[None], torch.from_numpy(voxel_codes(codes, self.settings.grid))


class Run:
    """Network, running average and optimiser of one training run.

    Parameters
    ----------
    prior : tensor, shape (67, 36, 48, 36)
        See `SegmentationNet`.
    settings : Settings
        See there.
    device : str
        "cpu" or "cuda".
    """

    def __init__(self, prior: Tensor, settings: Settings, device: str = "cpu") -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device, self.step = settings, device, 0
        self.net = SegmentationNet(settings.grid, prior).to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=settings.rate, weight_decay=1e-4)
        self.tables = [torch.from_numpy(t.astype(np.int64)).to(device) for t in (structure_of_code(), parcel_of_code())]

    def rate(self) -> float:
        """Return the learning rate of the current step: constant after a short rise, then a straight line to zero."""
        left = (self.settings.steps - self.step) / max(1, LOWERING * self.settings.steps)
        return self.settings.rate * min(1.0, (self.step + 1) / WARM_UP, max(left, 1e-3))

    def learn(self, image: Tensor, codes: Tensor) -> float:
        """Take one step on one image (1, x, y, z) with codes (voxels, 1 or 8), and return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        rows = None
        if self.settings.grid == FULL:
            draw = torch.Generator().manual_seed(self.step)
            rows = torch.randint(len(self.net.region), (FULL_ROWS,), generator=draw).to(self.device)
        with torch.autocast(self.device, torch.bfloat16):
            maps, _ = self.net.features(image[None].to(self.device))
        voxels = self.net.region if rows is None else self.net.region[rows]
        loss = self.loss(self.net.logits(maps, rows), codes.to(self.device)[voxels])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        self.step += 1
        return float(loss.detach())

    def loss(self, logits: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
        """Cross-entropy plus Dice of structures, and half of the same for parcels inside the cortex."""
        structures, parcels = (table[codes.long()] for table in self.tables)
        shares = _shares(structures, N_STRUCTURES)
        total = _loss(logits[0], shares)
        cortex = (parcels < N_PARCELS).float().mean(1) >= 0.5
        if bool(cortex.any()):
            known = _shares(parcels[cortex].clamp_max(N_PARCELS), N_PARCELS + 1)[:, :N_PARCELS]
            total = total + 0.5 * _loss(logits[1][cortex], known / known.sum(1, keepdim=True))
        return total

    def save(self, path: Path) -> None:
        """Write everything needed to go on, atomically."""
        state = {"step": self.step, "net": self.net.state_dict(), "average": self.average.state_dict()}
        partial = path.with_name(path.name + ".partial")
        torch.save(state | {"optimiser": self.optimiser.state_dict()}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])


def voxel_codes(codes: Codes, grid: Grid) -> Codes:
    """Return the codes inside every voxel of a grid: (voxels, 1) on the full grid, (voxels, 8) on the half grid."""
    if grid == FULL:
        return codes.reshape(-1, 1)
    x, y, z = HALF.shape
    return np.ascontiguousarray(codes.reshape(x, 2, y, 2, z, 2).transpose(0, 2, 4, 1, 3, 5)).reshape(-1, 8)


def make_prior(people: Sequence[Person]) -> Tensor:
    """Return how often each class lies where, at 4 mm, over people and their mirror images, shape (67, 36, 48, 36)."""
    counts = np.zeros((N_CODES, *PRIOR_SHAPE), np.float32)
    cells = np.arange(np.prod(PRIOR_SHAPE)).reshape(PRIOR_SHAPE).repeat(4, 0).repeat(4, 1).repeat(4, 2).ravel()
    mirror = mirror_of_code()
    for person in people:
        found = np.bincount(person.codes.ravel() * np.int64(cells.max() + 1) + cells, minlength=counts.size)
        one = found.reshape(counts.shape).astype(np.float32) / 64
        counts += one + one[mirror, ::-1]
    counts /= 2 * len(people)
    structures = np.zeros((N_STRUCTURES, *PRIOR_SHAPE), np.float32)
    np.add.at(structures, structure_of_code(), counts)
    parcels = counts[FIRST_PARCEL : FIRST_PARCEL + N_PARCELS] + counts[FIRST_PARCEL + N_PARCELS :][:N_PARCELS]
    structures = np.stack([ndimage.gaussian_filter(m, 0.75) for m in structures])
    parcels = np.stack([ndimage.gaussian_filter(m, 1.5) for m in parcels]) + 1e-6
    return torch.from_numpy(np.concatenate([structures, parcels / parcels.sum(0)]).astype(np.float32))


def dice_scores(net: SegmentationNet, image: NDArray[np.float32], codes: Codes) -> dict[str, float]:
    """Return Dice of every structure (by FreeSurfer id) and the mean over parcels, of one image with known codes."""
    with torch.no_grad(), torch.autocast(net.prior.device.type, torch.bfloat16):
        logits = net(torch.from_numpy(image)[None, None].to(net.prior.device))
    region = net.region.cpu().numpy()
    truth = voxel_codes(codes, net.grid)[region]
    found = logits[0].argmax(1).cpu().numpy()
    known = _majority(structure_of_code()[truth], N_STRUCTURES)
    scores = {str(STRUCTURES[k]): _dice(found == k, known == k) for k in range(1, N_STRUCTURES)}
    parcel = np.where(np.isin(found, CORTEX), logits[1].argmax(1).cpu().numpy(), N_PARCELS)
    right = (found == CORTEX[1]) * N_PARCELS
    named = _majority(np.minimum(parcel_of_code()[truth], N_PARCELS), N_PARCELS + 1)
    named_right = (known == CORTEX[1]) * N_PARCELS
    each = [
        _dice((parcel == k) & (right == s), (named == k) & (named_right == s) & np.isin(known, CORTEX))
        for k in range(N_PARCELS)
        for s in (0, N_PARCELS)
    ]
    return scores | {"parcels": float(np.nanmean(each))}


def validate(net: SegmentationNet, people: Sequence[Person], seed: int) -> dict[str, float]:
    """Return mean Dice over held-out people: plain T1w renderings, and one (``hard``) with every fault allowed."""
    plain: list[dict[str, float]] = []
    hard: list[dict[str, float]] = []
    for number, person in enumerate(people):
        for kind, rows in ((True, plain), (False, hard)):
            image, codes = render(as_is(person), net.grid, np.random.default_rng([seed, 10**9 + number]), plain=kind)
            rows.append(dice_scores(net, image, codes))
    mean = {key: float(np.nanmean([row[key] for row in plain])) for key in plain[0]}
    scored = [key for key in mean if key not in ("parcels", "24")]
    worse = float(np.nanmean([row[key] for row in hard for key in scored]))
    return {"structures": float(np.mean([mean[key] for key in scored])), "hard": worse} | mean


def train(people: Sequence[Person], out: Path, settings: Settings, options: argparse.Namespace) -> None:
    """Run the training from the start or from its checkpoint, writing curve, checkpoints and weights to ``out``."""
    held_out = [p for p in people if p.texture is None][2::5]
    taught = [p for p in people if all(p is not h for h in held_out)]
    run = Run(make_prior(taught), settings, options.device)
    checkpoint, curve = out / "checkpoint.pt", out / "curve.csv"
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    elif options.start:
        stored = torch.load(options.start, map_location=options.device, weights_only=True)["average"]
        for net in (run.net, run.average):
            net.load_state_dict(stored, strict=False)
    rows = _rows_until(curve, run.step)
    best = max((float(row["structures"]) + float(row["parcels"]) for row in rows), default=0.0)
    loader = DataLoader(
        Examples(taught, settings),
        batch_size=None,
        sampler=range(run.step, settings.steps),
        num_workers=options.workers,
    )
    losses, start, saved = [], time.monotonic(), time.monotonic()
    for image, codes in loader:
        losses.append(run.learn(image, codes))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is {losses[-1]} at step {run.step}.", str(out), "Use a lower learning rate.")
        if run.step % options.every == 0 or run.step == settings.steps:
            seconds = (time.monotonic() - start) / len(losses)
            row = {"step": run.step, "seconds": round(seconds, 3), "rate": run.rate(), "loss": float(np.mean(losses))}
            row |= validate(run.average, held_out, settings.seed) if held_out else {"structures": 0, "parcels": 0}
            rows.append({k: str(v) for k, v in row.items()} | {"held_out": " ".join(p.name for p in held_out)})
            _write(curve, rows)
            score = row["structures"] + row["parcels"]
            if score > best:
                best = score
                save_weights(run.average, out / f"embedded_{settings.grid.name}.safetensors", step=str(run.step))
            losses, start = [], time.monotonic()
            shown = {k: round(v, 4) for k, v in row.items() if k in ("step", "loss", "structures", "hard", "parcels")}
            sys.stderr.write(f"{shown}\n")
        if time.monotonic() - saved > options.save_every or run.step == settings.steps:
            run.save(checkpoint)
            saved = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and train; 0 when complete, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m core.segmentation.train", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="folder of whole-head label maps")
    parser.add_argument("--out", type=Path, required=True, help="folder for cache, curve, checkpoint and weights")
    parser.add_argument("--grid", default="half", choices=("half", "full"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument("--start", type=Path, help="checkpoint whose weights to start from, such as the half grid's")
    parser.add_argument("--every", type=int, default=100, help="steps between validations")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make images beside the training")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        people = [*prepare(options.labels, options.out / "people"), template_person()]
        settings = Settings(grid_named(options.grid), options.steps, options.seed, options.rate)
        train(people, options.out, settings, options)
    except SynthScopeError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _shares(channels: Tensor, count: int) -> Tensor:
    """Share of each channel among the codes of every voxel: (n, 1 or 8) to (n, count)."""
    shares = torch.zeros(len(channels), count, device=channels.device)
    part = torch.full(channels.shape, 1 / channels.shape[1], device=channels.device)
    return shares.scatter_add_(1, channels, part)


def _loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Cross-entropy plus mean Dice loss over present classes; both are least when posteriors equal the shares."""
    logs = F.log_softmax(logits, 1)
    chances = logs.exp()
    entropy = -(shares * logs).sum(1).mean()
    overlap = 2 * (chances * shares).sum(0) / ((chances**2).sum(0) + (shares**2).sum(0) + 1)
    return entropy + 1 - overlap[shares.sum(0) > 1].mean()


def _majority(channels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Most frequent channel of every voxel: (n, 1 or 8) to (n,)."""
    if channels.shape[1] == 1:
        return channels[:, 0].astype(np.int64)
    rows = np.arange(len(channels))[:, None] * count
    tallies = np.bincount((rows + channels).ravel(), minlength=len(channels) * count)
    return np.asarray(tallies.reshape(-1, count).argmax(1))


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    total = int(a.sum() + b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as table:
        return [row for row in csv.DictReader(table) if int(row["step"]) <= step]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as table:
        writer = csv.DictWriter(table, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
