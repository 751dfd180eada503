"""Fit the quality control of the embedded engine: predicted Dice from measures of segmentation and image.

Usage, from the root of the repository (images are kept in ``--cache``, about 2 s each to make; measuring takes about
1.5 s each and is done anew for other weights of the segmenter):

    python -m benchmarks.calibrate_embedded_qc --labels DIR --people DIR --cache DIR [--cases 400] [--held-out 120]

Two thirds of the images are rendered from label maps of real people, one third are brains of simulated cohorts; most
are degraded. Those held out come from people the segmenter and the fit never saw. Writes
``assets/embedded_qc.safetensors`` and ``docs/embedded_qc.csv`` (predicted and true Dice of the held-out cases), and
prints Spearman's correlation and the mean absolute error of each group.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats

from benchmarks.calibrate_atlas_qc import PLAN, TEST, TRAIN, degraded, erase
from core.segmentation import QC_GROUPS, embedded, embedded_qc
from core.segmentation.intensities import group_map
from core.segmentation.labelmaps import Person, id_of_code, prepare
from core.segmentation.synthesis import as_is, deform, render
from core.segmentation.train import split_people
from core.volume import HALF, Volume

ROOT = Path(__file__).parents[1]
# What is done to renderings of people, in turn; "hard" ones already carry every fault of the training.
FAULTS = ("", "blur", "erased", "noise", "cut", "flat", "", "steps", "erased", "blur", "haze", "noise")
STEPS, BATCH = 2000, 256
SEEDS = {True: 5101, False: 5102}  # held out or not


def main() -> None:
    """Make images, measure, fit, report, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=Path, required=True, help="folder of label maps, as for the training")
    parser.add_argument("--people", type=Path, required=True, help="cache of aligned label maps of the training")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the images")
    parser.add_argument("--weights", type=Path, default=ROOT / "assets", help="folder with embedded.safetensors")
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=120)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images-only", action="store_true")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    asked = [(held_out, k) for held_out, n in ((False, options.cases), (True, options.held_out)) for k in range(n)]
    work = partial(examine, options)
    with ProcessPoolExecutor(options.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        results = []
        start = time.perf_counter()
        for number, result in enumerate(pool.map(work, asked), start=1):
            results.append(result)
            if number % 20 == 0:
                print(f"{number} of {len(asked)}, {time.perf_counter() - start:.0f} s", flush=True)
    if options.images_only:
        return
    tables = {
        held_out: [
            np.stack(part)
            for part in zip(*(r for r, (h, _) in zip(results, asked, strict=True) if h == held_out), strict=True)
        ]
        for held_out in (False, True)
    }
    network = fit(*tables[False])
    network.save(ROOT / "assets" / embedded_qc.WEIGHTS)
    kinds = [kind_of(index) for held_out, index in asked if held_out]
    report(network, *tables[True], np.array(kinds))


def examine(options: argparse.Namespace, case: tuple[bool, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the measures (8, features) and the true Dice (8,) of one case."""
    held_out, index = case
    path = options.cache / f"{'test' if held_out else 'fit'}-{index:04d}.npz"
    done = path.with_name(f"{path.stem}-{fingerprint(options.weights)}.npz")
    if done.exists():
        with np.load(done) as stored:
            return stored["measures"], stored["dice"]
    if not path.exists():
        image, truth = make(options, held_out, index)
        np.savez_compressed(path.with_suffix(".partial.npz"), image=image.astype(np.float16), truth=truth)
        path.with_suffix(".partial.npz").replace(path)
    if options.images_only:
        return np.zeros((8, 1), np.float32), np.zeros(8, np.float32)
    with np.load(path) as stored:
        image, truth = stored["image"].astype(np.float32), stored["truth"]
    _, labels, measures = embedded.examine(Volume(image, HALF.affine), options.weights)
    found = group_map()[labels]
    dice = [
        2 * np.sum((found == k) & (truth == k)) / max(1, np.sum(found == k) + np.sum(truth == k))
        for k in range(1, len(QC_GROUPS) + 1)
    ]
    np.savez(done.with_suffix(".partial.npz"), measures=measures, dice=np.array(dice, np.float32))
    done.with_suffix(".partial.npz").replace(done)
    return measures, np.array(dice, np.float32)


@lru_cache(maxsize=1)
def fingerprint(weights: Path) -> str:
    """Return what tells measures of one state of the segmenter from those of another."""
    return hashlib.sha256((weights / embedded.WEIGHTS).read_bytes()).hexdigest()[:8]


def make(options: argparse.Namespace, held_out: bool, index: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return one image on the half grid and its true QC groups."""
    if index % 3 == 2:
        kind, strength = PLAN[index // 3 % len(PLAN)]
        image, labels = degraded(TEST if held_out else TRAIN, index, kind, strength)
        return image, group_map()[labels]
    taught, others = people(options.labels, options.people)
    rng = np.random.default_rng([SEEDS[held_out], index])
    pool = others if held_out else taught
    plain = bool(rng.random() < 0.4)
    image, codes = render(deform(as_is(pool[int(rng.integers(len(pool)))]), rng), HALF, rng, plain=plain)
    labels = halved(id_of_code()[codes.numpy()])
    return spoil(image.numpy(), labels, kind_of(index), rng)


@lru_cache(maxsize=1)
def people(labels: Path, cache: Path) -> tuple[list[Person], list[Person]]:
    """Return the people of the training and those held out."""
    return split_people(prepare(labels, cache))


def halved(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return one label of each 2 mm voxel: of its eight parts the most frequent QC group, then its first label."""
    parts = labels.reshape(72, 2, 96, 2, 72, 2).transpose(0, 2, 4, 1, 3, 5).reshape(72, 96, 72, 8)
    groups = group_map()[parts]
    counts = np.stack([(groups == k).sum(-1) for k in range(len(QC_GROUPS) + 1)], -1)
    winner = counts.argmax(-1)
    first = (groups == winner[..., None]).argmax(-1)
    return np.asarray(np.take_along_axis(parts, first[..., None], -1)[..., 0])


def spoil(
    image: NDArray[np.float32], labels: NDArray[np.int32], fault: str, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Add one fault that generators make, of random strength; return image and true QC groups."""
    size = rng.uniform(0, 1)
    brain = image > -1
    if fault == "erased":
        image, labels = erase(image, labels, float(rng.choice([1.0, 0.5])), rng)
    elif fault == "blur":
        soft = ndimage.gaussian_filter(image, 0.4 + 2.0 * size, axes=(0, 1, 2))
        image = np.where(brain, soft, -1) if rng.random() < 0.5 else soft
    elif fault == "noise":
        image = np.where(brain, image + rng.normal(0, 0.05 + 0.6 * size, image.shape), image)
    elif fault == "cut":  # a part of the brain is missing
        axis, share = int(rng.integers(3)), 0.35 * size
        edge = int(np.quantile(np.nonzero(brain)[axis], share if rng.random() < 0.5 else 1 - share))
        gone = np.zeros_like(brain)
        gone[(slice(None),) * axis + ((slice(None, edge) if edge < image.shape[axis] // 2 else slice(edge, None)),)] = (
            True
        )
        image, labels = np.where(gone, -1, image), np.where(gone, 0, labels)
    elif fault == "flat":  # tissues grow alike
        image = np.where(brain, image[brain].mean() + (image - image[brain].mean()) * (0.7 - 0.65 * size), image)
    elif fault == "steps":  # coarse planes along one axis
        axis, thick = int(rng.integers(3)), 2 + round(4 * size)
        image = np.take(image, (np.arange(image.shape[axis]) // thick * thick), axis)
    elif fault == "haze":
        image = np.where(
            brain, image, -1 + np.abs(ndimage.gaussian_filter(rng.normal(0, 1, image.shape), 4)) * 6 * size
        )
    return np.clip(image, -1, 1).astype(np.float32), group_map()[labels]


def fit(measures: NDArray[np.float32], dice: NDArray[np.float32]) -> embedded_qc.DiceRegressor:
    """Fit the regressor: absolute error of each of its networks, decayed weights, 2000 steps of 256 cases."""
    torch.manual_seed(0)
    network = embedded_qc.DiceRegressor()
    x, y = torch.from_numpy(measures), torch.from_numpy(dice)
    network.mean.copy_(x.mean(0))
    network.deviation.copy_(x.std(0).clamp_min(1e-3))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        kept = torch.randint(len(x), (BATCH,))
        noisy = x[kept] + 0.1 * network.deviation * torch.randn_like(x[kept])
        found = network.members(noisy)
        loss = torch.nn.functional.smooth_l1_loss(found, y[kept, None].expand_as(found), beta=0.03)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def kind_of(index: int) -> str:
    """Return what is done to the image of a case; see `make`."""
    return PLAN[index // 3 % len(PLAN)][0] if index % 3 == 2 else FAULTS[(index - index // 3) % len(FAULTS)]


def report(
    network: embedded_qc.DiceRegressor,
    measures: NDArray[np.float32],
    dice: NDArray[np.float32],
    kinds: NDArray[np.str_],
) -> None:
    """Print and write how prediction and truth agree on the held-out cases, also without painted-over structures."""
    with torch.inference_mode():
        predicted = network(torch.from_numpy(measures)).numpy()
    for k, name in enumerate(QC_GROUPS):
        rows = []
        for kept in (np.ones(len(dice), bool), kinds != "erased"):
            rank = stats.spearmanr(predicted[kept, k], dice[kept, k]).statistic
            rows.append(f"Spearman {rank:.3f}, mean absolute error {np.abs(predicted - dice)[kept, k].mean():.3f}")
        alone = stats.spearmanr(measures[:, k, 0], dice[:, k]).statistic
        print(f"{name:24s} {rows[0]}; nothing painted over: {rows[1]}; network's own expectation {alone:.3f}")
    with (ROOT / "docs" / "embedded_qc.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["case", "kind", "group", "predicted", "true"])
        writer.writerows(
            [case, kinds[case], name, round(float(predicted[case, k]), 4), round(float(dice[case, k]), 4)]
            for case in range(len(dice))
            for k, name in enumerate(QC_GROUPS)
        )


if __name__ == "__main__":
    main()
