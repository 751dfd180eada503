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
from safetensors.torch import load_file
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
    Person,
    mirror_of_code,
    parcel_of_code,
    prepare,
    structure_of_code,
    template_person,
)
from core.segmentation.network import N_PARCELS, N_STRUCTURES, PRIOR_SHAPE, SegmentationNet, save_weights
from core.segmentation.synthesis import as_is, deform, render
from core.volume import FULL, HALF, Grid

TEMPLATE_SHARE = 0.2
LOWERING = 0.25  # the last part of the run, in which the learning rate falls to zero
WARM_UP = 30
HALF_SHARE = 0.5  # of the steps see an image made at 2 mm
COARSE_ROWS, FINE_ROWS = 80_000, 20_000  # voxels of 2 mm that enter the loss; those of which all parts do


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides the label maps.

    Parameters
    ----------
    steps : int
        Images to learn from.
    seed : int
        Source of every draw.
    rate : float
        Learning rate before it is lowered.
    averaging : float
        Decay of the running average of the weights, which is what is validated and exported.
    batch : int
        Images of a step.
    """

    steps: int
    seed: int
    rate: float = 2e-3
    averaging: float = 0.99
    batch: int = 1


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Images (batch, 1, x, y, z) and codes (batch, 2 mm voxels, 8) of every step, made where the people are."""

    def __init__(self, people: Sequence[Person], settings: Settings, device: str = "cpu") -> None:
        self.settings = settings
        self.people = [as_is(p, device) for p in people if p.texture is None]
        self.textured = [as_is(p, device) for p in people if p.texture is not None]

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the examples of one step."""
        grid = HALF if np.random.default_rng([self.settings.seed, step]).random() < HALF_SHARE else FULL
        made = [self._make(step, number, grid) for number in range(self.settings.batch)]
        return torch.stack([image for image, _ in made])[:, None], torch.stack([codes for _, codes in made])

    def _make(self, step: int, number: int, grid: Grid) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.settings.seed, step, number])
        textured = self.textured and (not self.people or rng.random() < TEMPLATE_SHARE)
        pool = self.textured if textured else self.people
        image, codes = render(deform(pool[int(rng.integers(len(pool)))], rng), grid, rng)
        return image, voxel_codes(codes)


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
        self.net = SegmentationNet(prior).to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=settings.rate, weight_decay=1e-4)
        self.tables = [torch.from_numpy(t.astype(np.int64)).to(device) for t in (structure_of_code(), parcel_of_code())]

    def rate(self) -> float:
        """Return the learning rate of the current step: constant after a short rise, then a straight line to zero."""
        left = (self.settings.steps - self.step) / max(1, LOWERING * self.settings.steps)
        return self.settings.rate * min(1.0, (self.step + 1) / WARM_UP, max(left, 1e-3))

    def learn(self, images: Tensor, codes: Tensor) -> float:
        """Take one step on images (b, 1, x, y, z) with codes (b, 2 mm voxels, 8), and return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        images, codes = images.to(self.device), codes.to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu"):
            coarse, fine = self.net.features(images)
        draw = torch.Generator().manual_seed(self.step)
        total = torch.zeros((), device=self.device)
        for k in range(len(images)):
            rows = torch.randint(len(self.net.region), (COARSE_ROWS,), generator=draw).to(self.device)
            known = codes[k, self.net.region[rows]]
            answer = self.net.coarse_logits(coarse[k : k + 1].float(), rows)
            total = total + self.loss(answer, known)
            if fine is not None:
                parts = self.net.fine_logits(answer[:FINE_ROWS], fine[k : k + 1].float(), rows[:FINE_ROWS])
                total = total + self.loss(parts.flatten(0, 1), known[:FINE_ROWS].reshape(-1, 1))
        loss = total / len(images)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.settings.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.net.parameters()), 1 - decay)
        self.step += 1
        return float(loss.detach())

    def loss(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Cross-entropy plus Dice of structures, and half of the same for parcels inside the cortex.

        Parameters
        ----------
        logits : tensor, shape (n, 67)
        codes : tensor, shape (n, 1 or 8)
            What each voxel holds.
        """
        structures, parcels = (table[codes.long()] for table in self.tables)
        total = _loss(logits[:, :N_STRUCTURES], _shares(structures, N_STRUCTURES))
        cortex = (parcels < N_PARCELS).float().mean(1) >= 0.5
        if bool(cortex.any()):
            known = _shares(parcels[cortex].clamp_max(N_PARCELS), N_PARCELS + 1)[:, :N_PARCELS]
            total = total + 0.5 * _loss(logits[cortex, N_STRUCTURES:], known / known.sum(1, keepdim=True))
        return total

    def start_from(self, path: Path) -> None:
        """Start from exported weights; what they lack or the prior of other people stays as it is."""
        stored = load_file(path, device=self.device)
        stored.pop("prior", None)
        for net in (self.net, self.average):
            unknown = net.load_state_dict(stored, strict=False).unexpected_keys
            if unknown:
                raise InputError(f"unknown weights {unknown[:3]}.", str(path), "Give weights that this code exported.")

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


def voxel_codes(codes: Tensor) -> Tensor:
    """Return the codes of the eight parts of every 2 mm voxel: (144, 192, 144) to (voxels, 8), as `parts_of`."""
    x, y, z = HALF.shape
    return codes.reshape(x, 2, y, 2, z, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8)


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


def dice_scores(net: SegmentationNet, image: Tensor, codes: Tensor) -> dict[str, float]:
    """Return Dice of every structure (by FreeSurfer id) and the mean over parcels, of one image with known codes."""
    with torch.no_grad():
        structures, parcels = net(image[None, None].to(net.prior.device))
    truth = voxel_codes(codes)[net.region].cpu().numpy()  # (n, 8)
    truth = truth if structures.ndim == 2 else truth.reshape(-1, 1)
    found, parcel = (logits.flatten(0, -2).argmax(1).cpu().numpy() for logits in (structures, parcels))
    known = _majority(structure_of_code()[truth], N_STRUCTURES)
    scores = {str(STRUCTURES[k]): _dice(found == k, known == k) for k in range(1, N_STRUCTURES)}
    named = _majority(np.minimum(parcel_of_code()[truth], N_PARCELS), N_PARCELS + 1)
    sides = [[np.flatnonzero(which == channel) for which in (found, known)] for channel in CORTEX]
    each = []
    for ours, theirs in sides:
        tallies = [np.bincount(labels, minlength=N_PARCELS + 1) for labels in (parcel[ours], named[theirs])]
        both = np.intersect1d(ours, theirs, assume_unique=True)
        shared = np.bincount(parcel[both][parcel[both] == named[both]], minlength=N_PARCELS + 1)
        with np.errstate(invalid="ignore"):
            each += (2 * shared / (tallies[0] + tallies[1]))[:N_PARCELS].tolist()
    return scores | {"parcels": float(np.nanmean(each))}


def validate(net: SegmentationNet, people: Sequence[Person], seed: int) -> dict[str, float]:
    """Return mean Dice over held-out people, computed where the network is.

    Returns
    -------
    dict
        Dice by FreeSurfer id of plain T1w renderings, ``parcels``, and the mean over the 31 structures: ``structures``
        of plain renderings, ``hard`` of renderings with every fault allowed, ``half`` of plain ones on the half grid.
    """
    kinds = {"structures": (FULL, True), "hard": (FULL, False), "half": (HALF, True)}
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number, person in enumerate(people):
        for kind, (grid, plain) in kinds.items():
            rng = np.random.default_rng([seed, 10**9 + number])
            rows[kind].append(dice_scores(net, *render(as_is(person, str(net.prior.device)), grid, rng, plain=plain)))
    means = {kind: {k: float(np.nanmean([row[k] for row in found])) for k in found[0]} for kind, found in rows.items()}
    scored = [k for k in means["structures"] if k not in ("parcels", "24")]
    return {kind: float(np.mean([mean[k] for k in scored])) for kind, mean in means.items()} | means["structures"]


def split_people(people: Sequence[Person]) -> tuple[list[Person], list[Person]]:
    """Return who is taught and who is held out for validation: every fifth of the label maps, never the atlas."""
    held_out = [p for p in people if p.texture is None][2::5]
    return [p for p in people if all(p is not h for h in held_out)], held_out


def train(people: Sequence[Person], out: Path, settings: Settings, options: argparse.Namespace) -> None:
    """Run the training from the start or from its checkpoint, writing curve, checkpoints and weights to ``out``."""
    taught, held_out = split_people(people)
    run = Run(make_prior(taught), settings, options.device)
    checkpoint, curve = out / "checkpoint.pt", out / "curve.csv"
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    elif options.start:
        run.start_from(options.start)
    rows = _rows_until(curve, run.step)
    best = max((float(row["structures"]) + float(row["parcels"]) for row in rows), default=0.0)
    loader = DataLoader(
        Examples(taught, settings, options.device),
        batch_size=None,
        sampler=range(run.step, settings.steps),
        num_workers=options.workers,
    )
    losses, start, saved = [], time.monotonic(), time.monotonic()
    for images, codes in loader:
        losses.append(run.learn(images, codes))
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
                save_weights(run.average, out / "embedded.safetensors", step=str(run.step))
            losses, start = [], time.monotonic()
            shown = {
                k: round(v, 4)
                for k, v in row.items()
                if k in ("step", "seconds", "loss", "structures", "hard", "half", "parcels")
            }
            sys.stderr.write(f"{shown}\n")
        if time.monotonic() - saved > options.save_every or run.step == settings.steps:
            run.save(checkpoint)
            saved = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and train; 0 when complete, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m core.segmentation.train", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="folder of whole-head label maps")
    parser.add_argument("--out", type=Path, required=True, help="folder for cache, curve, checkpoint and weights")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=Settings.rate, help="learning rate")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument("--start", type=Path, help="exported weights (.safetensors) to start from")
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
        settings = Settings(options.steps, options.seed, options.rate, batch=options.batch)
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
