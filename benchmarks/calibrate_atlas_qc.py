"""Fit the QC model of the atlas engine: predicted Dice from measures of agreement, on simulated volumes.

Usage, from the root of the repository (about 4 s a volume on one core; the collected measures are kept, so a run that
was stopped goes on):

    python -m benchmarks.calibrate_atlas_qc --measures measures.jsonl --cases 160 --held-out 60

Writes ``data/atlas_qc.json`` and prints, on people never used in the fit, Spearman's correlation and the mean absolute
error of predicted against true Dice for each group.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, optimize, stats

from core import simulate
from core.segmentation import DATA, QC_GROUPS, atlas, qc_groups
from core.segmentation.intensities import group_map
from core.simulate.cases import draw_recipe, render
from core.simulate.warp import make_warp
from core.volume import HALF

TRAIN, TEST = 9001, 9002  # seeds of the two cohorts
# How cases are degraded in turn: nothing; each defect; anatomy far from the template; a structure painted over.
PLAN: tuple[tuple[str, float], ...] = (
    ("", 0), ("blur", 1), ("erased", 1), ("noise", 0.1), ("wild", 1.5), ("blur", 2), ("erased", 0.5), ("noise", 0.2),
    ("background-artefact", 0.5), ("blur", 3), ("wild", 2.0), ("noise", 0.35), ("erased", 1), ("large-ventricles", 1),
    ("blur", 4.5), ("noise", 0.6),
)  # fmt: skip
# The score may only rise with these measures, and only fall with strain and roughness.
SIGNS = {
    "correlation": 1,
    "agreement": 1,
    "contrast": 1,
    "brightness": -1,
    "sharpness": 1,
    "strain": -1,
    "roughness": -1,
}
PENALTY = 0.02


def main() -> None:
    """Collect measures, fit, report, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measures", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=160)
    parser.add_argument("--held-out", type=int, default=60)
    options = parser.parse_args()
    train = collect(options.measures, TRAIN, options.cases)
    test = collect(options.measures, TEST, options.held_out)
    groups, report = {}, {}
    for name in QC_GROUPS:
        groups[name] = fit(*table(train, name))
        _, y, present = table(test, name)
        predicted = np.array([atlas.predict_group(groups[name], row["measures"][name]) for row in test])
        report[name] = {
            "spearman": round(float(stats.spearmanr(predicted, y).statistic), 3),
            "spearman_of_present": round(float(stats.spearmanr(predicted[present], y[present]).statistic), 3),
            "mean_absolute_error": round(float(np.abs(predicted - y).mean()), 3),
            "mean_absolute_error_of_present": round(float(np.abs(predicted - y)[present].mean()), 3),
        }
        print(f"{name:24s}", report[name])
    about = "predicted Dice = logistic(quality, z) * logistic(presence, z), z = (measure - mean) / sd, intercept first"
    record = {"about": about, "made_by": "benchmarks/calibrate_atlas_qc.py", "measures": list(atlas.FEATURES)}
    record |= {"cases": len(train), "held_out": len(test), "held_out_report": report, "groups": groups}
    (DATA / "atlas_qc.json").write_text(json.dumps(record, indent=1) + "\n")


def collect(path: Path, seed: int, n: int) -> list[dict[str, Any]]:
    """Return measures and true Dice of ``n`` cases of a cohort, computing those not in the file yet."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(line["seed"], line["index"]): line for line in lines}
    for index in range(n):
        if (seed, index) not in known:
            known[seed, index] = examine(seed, index)
            with path.open("a") as out:
                out.write(json.dumps(known[seed, index]) + "\n")
    return [known[seed, index] for index in range(n)]


def examine(seed: int, index: int) -> dict[str, Any]:
    """Segment one degraded case and compare with its truth."""
    kind, strength = PLAN[index % len(PLAN)]
    image, truth = degraded(seed, index, kind, strength)
    registration = atlas.register(image, HALF)
    labels = atlas._labels_at(registration.positions, HALF)
    found, true = group_map()[labels], group_map()[truth]
    dice = {
        name: float(2 * np.sum((found == k) & (true == k)) / max(1, np.sum(found == k) + np.sum(true == k)))
        for k, name in enumerate(QC_GROUPS, start=1)
    }
    measures = atlas.measure(image, registration, labels)
    return {"seed": seed, "index": index, "kind": kind, "strength": strength, "measures": measures, "dice": dice}


def degraded(seed: int, index: int, kind: str, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return image and true labels."""
    if kind not in ("erased", "wild"):
        case = simulate.simulate_case(HALF, seed, index, defect=kind, strength=strength)
        return case.volume.data, case.labels
    rng = np.random.default_rng([seed, index, 9])
    recipe = draw_recipe(rng)
    if kind == "wild":
        recipe = replace(recipe, warp=strength)
    image, labels = render(recipe, make_warp(recipe.log_size, recipe.growth, recipe.warp, rng), HALF, rng)
    if kind == "erased":
        image, labels = erase(image, labels, strength, rng)
    return image, labels


def erase(
    image: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint over three groups with what surrounds them, or white matter; ``share`` < 1 leaves their posterior part."""
    image, labels = image.copy(), labels.copy()
    for name in rng.choice([g for g in QC_GROUPS if not g.startswith("general")], 3, replace=False):
        mask = np.isin(labels, [k for k, g in qc_groups().items() if g == name])
        y = np.nonzero(mask)[1]
        mask[:, : int(np.quantile(y, 1 - share)) if share < 1 else 0] = False
        ring = ndimage.binary_dilation(mask, iterations=2) & ~mask & (labels > 0)
        filling = image[ring] if rng.random() < 0.5 else image[np.isin(labels, (2, 41))]
        image[mask] = rng.choice(filling, mask.sum())
        image[mask] = ndimage.gaussian_filter(image, 0.8)[mask]
        labels[mask] = 24
    return image, labels


def table(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return measures (n, 7), true Dice (n,) and whether the structure is whole (n,) of one group."""
    x = np.array([[row["measures"][name][f] for f in atlas.FEATURES] for row in rows])
    y = np.array([row["dice"][name] for row in rows])
    return x, y, ~((y < 0.75) & np.array([row["kind"] == "erased" for row in rows]))


def fit(x: np.ndarray, y: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    """Fit quality on the cases that have the structure, then presence on all of them."""
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-6
    z = (x - mean) / sd
    quality = least_squares(z[present], y[present], np.ones(present.sum()))
    presence = least_squares(z, y, logistic(quality, z)) if not present.all() else np.r_[10, 0 * quality[1:]]
    model = {"mean": mean, "sd": sd, "quality": quality, "presence": presence}
    return {name: [round(float(v), 4) for v in values] for name, values in model.items()}


def least_squares(z: np.ndarray, y: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return intercept and weights of factor * logistic(...) = y; signs fixed, a small penalty on the weights."""
    signs = np.array([SIGNS[f] for f in atlas.FEATURES])

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([factor * logistic(theta, z) - y, PENALTY * theta[1:]])

    bounds = np.r_[-10, np.where(signs > 0, 0, -10)], np.r_[10, np.where(signs > 0, 10, 0)]
    return np.asarray(optimize.least_squares(residuals, np.r_[2.0, 0.1 * signs], bounds=bounds).x)


def logistic(theta: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the logistic function of a linear predictor, intercept first."""
    return np.asarray(1 / (1 + np.exp(-(theta[0] + z @ np.asarray(theta[1:])))))


if __name__ == "__main__":
    main()
