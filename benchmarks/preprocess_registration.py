"""Compare tools for the affine registration of a stripped brain to the atlas; print one table.

Truth comes from brains moved by a known 12-parameter affine. "template" is the atlas itself with a smooth
warp of 1.5 mm whose affine part is removed, a gamma change of contrast, a bias of 20 % and 4 % noise.
"scan" (with ``--t1``) is the real brain moved the same way: the tool must return its own answer for the
unmoved scan combined with the known motion. The error is the mean distance over the brain, in mm, to where
the truth puts each voxel.

    python -m benchmarks.preprocess_registration [--t1 FILE] [--cases 8] [--tools NAME ...]
    python -m benchmarks.preprocess_registration --t1 FILE --picture docs/images/preprocess_t1.png
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from core import preprocess
from core.volume import FULL, Volume, resample, template

Matrix = NDArray[np.float64]
Register = Callable[[Volume, Volume], Matrix]  # fixed, moving -> world of fixed to world of moving


def random_affine(seed: int, *, degrees: float = 25.0) -> Matrix:
    """World-to-world motion: rotations up to ``degrees``, scales 0.85-1.15, shears 0.05, shifts 20 mm."""
    rng = np.random.default_rng(seed)
    x, y, z = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    cos, sin = np.cos, np.sin
    turn = np.array([[1, 0, 0], [0, cos(x), -sin(x)], [0, sin(x), cos(x)]])
    turn = np.array([[cos(y), 0, sin(y)], [0, 1, 0], [-sin(y), 0, cos(y)]]) @ turn
    turn = np.array([[cos(z), -sin(z), 0], [sin(z), cos(z), 0], [0, 0, 1]]) @ turn
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = rng.uniform(-0.05, 0.05, 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ np.diag(rng.uniform(0.85, 1.15, 3))
    affine[:3, 3] = rng.uniform(-20, 20, 3)
    return affine


def brain_points(volume: Volume) -> Matrix:
    """World coordinates of every 5th voxel of the brain, shape (n, 3)."""
    index = np.argwhere(volume.data[::5, ::5, ::5] > volume.data.min()) * 5
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def move(volume: Volume, motion: Matrix, seed: int, *, warp_mm: float) -> Volume:
    """Resample ``volume`` so that its world point p lies at ``motion`` p; change contrast, add bias and noise."""
    rng = np.random.default_rng(seed + 1000)
    shape, spacing = (200, 220, 200), 1.0
    centre = (motion @ np.append(brain_points(volume).mean(axis=0), 1))[:3]
    frame = np.diag([spacing] * 3 + [1.0])
    frame[:3, 3] = centre - np.array(shape) / 2
    pull = np.linalg.inv(volume.affine) @ np.linalg.inv(motion) @ frame
    index = np.indices(shape, dtype=np.float32).reshape(3, -1)
    where = (pull[:3, :3] @ index + pull[:3, 3:]).reshape(3, *shape)
    if warp_mm:
        warp = np.stack([ndimage.zoom(rng.normal(0, 1, (7, 7, 7)), np.array(shape) / 7, order=3) for _ in range(3)])
        inside = ndimage.map_coordinates(volume.data, where, order=0, cval=volume.data.min()) > volume.data.min()
        design = np.vstack([index[:, inside.ravel()], np.ones(inside.sum())]).T
        fit = np.linalg.lstsq(design, warp[:, inside].T, rcond=None)[0]  # the warp must not move the best affine
        warp -= (np.vstack([index, np.ones(index.shape[1])]).T @ fit).T.reshape(3, *shape)
        where = where + warp * (warp_mm / np.sqrt((warp[:, inside] ** 2).sum(axis=0).mean()))
    low, high = float(volume.data.min()), float(volume.data.max())
    data = ndimage.map_coordinates(volume.data, where, order=1, cval=low)
    brain = data > low
    data = ((data - low) / (high - low)) ** rng.uniform(0.6, 1.6)
    bias = ndimage.zoom(rng.normal(0, 1, (4, 4, 4)), np.array(shape) / 4, order=3)
    data = data * np.exp(0.2 * bias / np.abs(bias).max()) + rng.normal(0, 0.04, shape)
    return Volume(np.where(brain, np.maximum(data, 0.01), 0).astype(np.float32) * 100, frame, f"moved-{seed}")


def error_mm(found: Matrix, truth: Matrix, points: Matrix) -> float:
    """Mean distance between where two affines put the points."""
    homogeneous = np.c_[points, np.ones(len(points))]
    return float(np.linalg.norm((homogeneous @ (found - truth).T)[:, :3], axis=1).mean())


def _centres(fixed: Volume, moving: Volume) -> Matrix:
    start = np.eye(4)
    start[:3, 3] = brain_points(moving).mean(axis=0) - brain_points(fixed).mean(axis=0)
    return start


def with_simpleitk(metric: str) -> Register:
    """Similarity, then affine; gradient descent, not tuned; levels of 8 and 4, then of 4 and 2 mm."""

    def register(fixed: Volume, moving: Volume) -> Matrix:
        a, b = preprocess.to_sitk(fixed), preprocess.to_sitk(moving)
        flip = np.diag([-1.0, -1, 1, 1])
        centre = flip[:3, :3] @ brain_points(fixed).mean(axis=0)
        first: sitk.Transform = sitk.Similarity3DTransform()
        first.SetCenter(centre)
        first.SetTranslation((flip @ _centres(fixed, moving))[:3, 3])
        for final in (False, True):
            if final:
                affine = sitk.AffineTransform(3)
                affine.SetMatrix(first.GetMatrix())
                affine.SetTranslation(first.GetTranslation())
                affine.SetCenter(centre)
                first = affine
            method = sitk.ImageRegistrationMethod()
            if metric == "mi":
                method.SetMetricAsMattesMutualInformation(32)
            else:
                method.SetMetricAsCorrelation()
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentagePerLevel([0.5, 0.1] if final else [0.5, 0.5], 1)
            method.SetInterpolator(sitk.sitkLinear)
            method.SetOptimizerAsGradientDescent(1.0, 100, 1e-6, 10)
            method.SetOptimizerScalesFromPhysicalShift()
            method.SetShrinkFactorsPerLevel([4, 2] if final else [8, 4])
            method.SetSmoothingSigmasPerLevel([2, 1] if final else [4, 2])
            method.SetInitialTransform(first, inPlace=True)
            method.Execute(a, b)
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(first.GetMatrix()).reshape(3, 3)
        offset = np.array(first.TransformPoint((0.0, 0.0, 0.0)))
        matrix[:3, 3] = offset
        return flip @ matrix @ flip

    return register


def with_greedy(metric: str, iterations: str = "100x50x0") -> Register:
    """12 parameters from the brain centres, levels of 4, 2 and 1 mm with so many iterations each; one thread."""

    def register(fixed: Volume, moving: Volume) -> Matrix:
        from picsl_greedy import Greedy3D

        start = _centres(fixed, moving)
        low = fixed.data.min()
        scale = np.median(fixed.data[fixed.data > low] - low) / np.median(moving.data[moving.data > 0])
        scaled = (moving.data * scale).astype(np.float32)  # SSD needs equal units
        target = replace(fixed, data=fixed.data - low)
        greedy = Greedy3D()
        greedy.execute(
            f"-i fixed moving -a -dof 12 -ia-identity -m {metric} -n {iterations} -jitter 0 -seed 1 -threads 1"
            " -o found -V 0",
            out=io.StringIO(),
            fixed=preprocess.to_sitk(target),
            moving=preprocess.to_sitk(replace(moving, data=scaled, affine=np.linalg.inv(start) @ moving.affine)),
            found=None,
        )
        return np.asarray(start @ np.asarray(greedy["found"], dtype=np.float64))

    return register


def with_ants(fixed: Volume, moving: Volume) -> Matrix:
    """ANTsPy, its default affine (Mattes MI)."""
    import ants  # not a dependency of the product; compared only when it happens to be installed

    def image(volume: Volume) -> object:
        flipped = np.diag([-1.0, -1, 1, 1]) @ volume.affine
        spacing = np.linalg.norm(flipped[:3, :3], axis=0)
        return ants.from_numpy(
            np.ascontiguousarray(volume.data - volume.data.min()),
            origin=tuple(flipped[:3, 3]),
            spacing=tuple(spacing),
            direction=flipped[:3, :3] / spacing,
        )

    result = ants.registration(image(fixed), image(moving), type_of_transform="Affine", random_seed=1)
    found = ants.read_transform(result["fwdtransforms"][0])
    points = np.vstack([np.zeros(3), np.eye(3)])
    images = np.array([found.apply_to_point(tuple(p)) for p in points])
    matrix = np.eye(4)
    matrix[:3, 3] = images[0]
    matrix[:3, :3] = (images[1:] - images[0]).T
    flip = np.diag([-1.0, -1, 1, 1])
    return flip @ matrix @ flip


TOOLS: dict[str, Register] = {
    "greedy NCC 4x4x4, to 2 mm": with_greedy("NCC 4x4x4"),
    "greedy NCC 2x2x2, to 2 mm": with_greedy("NCC 2x2x2"),
    "greedy NCC 4x4x4, to 1 mm": with_greedy("NCC 4x4x4", "100x50x10"),
    "greedy NMI, to 2 mm": with_greedy("NMI"),
    "greedy SSD, to 2 mm": with_greedy("SSD"),
    "SimpleITK correlation, to 2 mm": with_simpleitk("correlation"),
    "SimpleITK Mattes MI, to 2 mm": with_simpleitk("mi"),
    "ANTsPy affine MI, to 1 mm": with_ants,
}


def agreement(fixed: Volume, moving: Volume, found: Matrix) -> float:
    """Correlation of the two images over the union of the brains, after resampling."""
    moved = resample(replace(moving, affine=np.linalg.inv(found) @ moving.affine), fixed.data.shape, fixed.affine)
    union = (fixed.data > fixed.data.min()) | (moved.data > moved.data.min())
    return float(np.corrcoef(fixed.data[union], moved.data[union])[0, 1])


PLACES = np.array([(-1.0, -16.0, 4.0), (-24.0, 14.0, 26.0)])  # atlas mm: through the midline, and off it
CELL = (192, 192)


def planes(volume: Volume, place: NDArray[np.float64], low: float, high: float) -> list[NDArray[np.uint8]]:
    """Sagittal, coronal and axial plane through a place in world mm, anterior and superior to the right and up."""
    x, y, z = np.rint(np.linalg.inv(volume.affine) @ np.append(place, 1)).astype(int)[:3]
    cuts = (volume.data[x], volume.data[:, y], volume.data[:, :, z])
    out = []
    for cut in cuts:
        image = Image.fromarray((np.clip((np.rot90(cut) - low) / (high - low), 0, 1) * 255).astype(np.uint8))
        cell = Image.new("L", CELL)
        cell.paste(image, tuple((c - n) // 2 for c, n in zip(CELL, image.size, strict=True)))
        out.append(np.asarray(cell))
    return out


def picture(source: Path, target: Path) -> None:
    """Preprocess one scan and draw it: the raw head, the result and the atlas at the same places."""
    result, raw = preprocess.preprocess(source, FULL), preprocess.read_scan(source)
    # The raw head is only moved, not turned or scaled, so the row shows it as it was scanned.
    shift = np.eye(4)
    centre = np.linalg.inv(result.affine) @ np.array([0, -15, 4, 1])
    shift[:3, 3] = np.array([0, -15, 4]) - centre[:3]
    frame = np.diag([1.25, 1.25, 1.25, 1.0])
    frame[:3, 3] = np.array([0, -15, 4]) - 96 * 1.25
    moved = resample(Volume(raw.data, shift @ raw.affine), (192, 192, 192), frame)
    rows = [("scan", moved, PLACES[0], 0.0, float(np.quantile(raw.data, 0.995)))]
    for place in PLACES:
        rows += [("result", result.volume, place, -1.0, 1.0), ("atlas", template(FULL), place, -1.0, 1.0)]
    sheet = Image.fromarray(np.vstack([np.hstack(planes(*row[1:])) for row in rows]))
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        text = row[0] if row[0] == "scan" else f"{row[0]}, at {', '.join(f'{v:g}' for v in row[2])} mm"
        draw.text((4, number * CELL[1] + 2), text, fill=255)
    draw.text((CELL[0] * 3 - 70, 2), "L left, R right", fill=255)
    sheet.quantize(64).save(target, optimize=True)


def main() -> None:
    """Run the comparison and print it as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t1", type=Path, help="raw T1w head, any format that core.preprocess reads")
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--degrees", type=float, default=25.0)
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--picture", type=Path, help="only draw the preprocessing of the --t1 scan into this PNG")
    options = parser.parse_args()
    if options.picture:
        picture(options.t1, options.picture)
        return
    fixed = template(FULL)
    scan = preprocess.brain_of(options.t1) if options.t1 else None
    print(
        "| tool | template: mean, worst error (mm) | scan: mean, worst error (mm) | scan: correlation | CPU seconds |"
    )
    print("|---|---|---|---|---|")
    for name in options.tools:
        register, seconds, errors, scan_errors, match = TOOLS[name], [], [], [], float("nan")
        try:
            own = register(fixed, scan) if scan else np.eye(4)
            match = agreement(fixed, scan, own) if scan else match
            for seed in range(options.cases):
                motion = random_affine(seed, degrees=options.degrees)
                moving = move(fixed, motion, seed, warp_mm=1.5)
                start = time.process_time()  # of all threads: other work on the machine does not count
                errors.append(error_mm(register(fixed, moving), motion, brain_points(fixed)))
                seconds.append(time.process_time() - start)
                if scan:
                    found = register(fixed, move(scan, motion, seed, warp_mm=0))
                    scan_errors.append(error_mm(found, motion @ own, brain_points(fixed)))
        except ImportError:
            print(f"| {name} | not installed | | | |")
            continue
        pairs = [f"{np.mean(e):.2f}, {np.max(e):.2f}" if e else "" for e in (errors, scan_errors)]
        print(f"| {name} | {pairs[0]} | {pairs[1]} | {match:.3f} | {np.mean(seconds):.1f} |", flush=True)


if __name__ == "__main__":
    main()
