"""Compare the metrics with their peers on the same arrays: values, time and memory; print Markdown tables.

Peers are MONAI, medmetric, torch-fidelity, prdc, sim-toolkit (see `benchmarks.peers`) and the plain formulas of the
published code (`benchmarks.published_formulas`). Times are the least of three runs, of one where a
peer takes more than three seconds. They are processor seconds with one thread on both sides, which other work on the
machine changes little. The time of a peer's root grows with the cube of the width: all but SciPy's plain one get the
first ``--root-width`` features.

    python -m benchmarks.metrics [--n 400] [--d 2048] [--threads 1] [--only features images encoders closed]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from benchmarks import measure, peers, published_formulas
from core.metrics import features, images, neighbours, published, sliced
from core.volume import FULL, HALF

Compute = Callable[[], ArrayLike]
Rows = NDArray[np.float64]
HEAD = ("metric", "peer", "ours", "peer's value", "difference", "ours", "peer", "faster", "peak, ours", "peak, peer")
REPEATS, QUICK = 3, 3.0  # the least time of so many runs counts; one run of a peer that takes more seconds is enough
SHARES = ("precision", "recall", "density", "coverage")


def compare(metric: str, ours: Compute, **others: Compute) -> None:
    """Print a row for each peer: both values, their difference, times and memory; ours is measured beside each."""
    for peer, theirs in others.items():
        try:
            other = measure.run(theirs)
            if other.seconds < QUICK:
                other = measure.run(theirs, repeats=REPEATS)
        except Exception as error:  # whatever a peer raises is what there is to say about it
            reason = " ".join(str(error).split())[:100]
            measure.print_row(metric, peer.replace("_", " "), *[""] * 7, f"fails: {type(error).__name__}: {reason}")
            continue
        own = measure.run(ours, repeats=REPEATS)
        measure.print_row(
            metric,
            peer.replace("_", " "),
            measure.shown(own.value),
            measure.shown(other.value),
            f"{measure.difference(own.value, other.value):.1e}",
            f"{own.seconds:.3f} s",
            f"{other.seconds:.2f} s",
            f"{other.seconds / own.seconds:.1f}×",
            measure.mib(own.peak),
            measure.mib(other.peak),
        )


def cohorts(n: int, d: int) -> tuple[Rows, Rows]:
    """Two cohorts of simulated features whose spread falls as that of a network's features."""
    rng, scale = np.random.default_rng(0), np.arange(1, d + 1) ** -0.5
    return rng.normal(size=(n, d)) * scale, rng.normal(size=(n, d)) * scale * 1.05 + 0.05 * scale


def compare_features(n: int, d: int, root_width: int) -> None:
    """Compare feature metrics on one pair of cohorts."""
    real, synthetic = cohorts(n, d)
    width = features.median_distance(real)
    pair = (real, synthetic)
    narrow = (real[:, :root_width], synthetic[:, :root_width])
    compare("FID", lambda: features.frechet_distance(*pair), SciPy_root=lambda: published_formulas.frechet(*pair))
    compare(
        f"FID, width {narrow[0].shape[1]}",
        lambda: features.frechet_distance(*narrow),
        MONAI=lambda: peers.monai_fid(*narrow),
        medmetric=lambda: peers.medmetric_fid(*narrow),
        torch_fidelity=lambda: peers.fidelity_fid(*narrow),
        sim_toolkit=lambda: peers.sim_fid(*narrow),
    )
    compare(
        f"FID, as published, width {narrow[0].shape[1]}",
        lambda: published.fid(*narrow),
        formula=lambda: published_formulas.fid(*narrow),
    )
    compare(
        "KID",
        lambda: features.mmd2(*pair, kernel="polynomial"),
        torch_fidelity=lambda: peers.fidelity_mmd2(*pair),
        sim_toolkit=lambda: peers.sim_kid(*pair),
    )
    compare(
        "MMD², RBF",
        lambda: features.mmd2(*pair, kernel="rbf", bandwidth=width),
        medmetric=lambda: peers.medmetric_mmd2(*pair, width),
        torch_fidelity=lambda: peers.fidelity_mmd2(*pair, bandwidth=width),
    )
    compare("MMD², linear", lambda: features.mmd2(*pair, kernel="linear"), MONAI=lambda: peers.monai_mmd(*pair))
    compare_neighbours(*pair)
    compare(
        "MMD, as published",
        lambda: published.feature_mmd(*pair),
        formula=lambda: published_formulas.feature_mmd(*pair),
    )


def compare_neighbours(real: Rows, synthetic: Rows, k: int = neighbours.NEIGHBOURS) -> None:
    """Compare the shares from nearest neighbours."""

    def ours(names: tuple[str, ...]) -> list[float]:
        found = neighbours.neighbour_shares(real, synthetic, k=k)
        return [getattr(found, name) for name in names]

    compare(
        "precision, recall, density, coverage",
        partial(ours, SHARES),
        prdc=lambda: peers.prdc_shares(real, synthetic, k),
        sim_toolkit=lambda: peers.sim_shares(real, synthetic, k),
    )
    compare(
        "precision, recall",
        partial(ours, SHARES[:2]),
        torch_fidelity=lambda: peers.fidelity_precision_recall(real, synthetic, k),
    )


def smooth_pair(shape: tuple[int, int, int], part: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two volumes in [-1, 1] that share most of their texture."""
    noise = [ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) for seed in (0, 1)]
    x, y = ((3 * (noise[0] + weight * noise[1])).clip(-1, 1).astype(np.float32) for weight in (0.0, part))
    return x, y


def compare_images() -> None:
    """Compare MS-SSIM of one full-grid pair, and the image metrics as published."""
    pair = smooth_pair(FULL.shape, 0.3)
    compare(
        "MS-SSIM, one full-grid pair",
        lambda: images.ms_ssim(*pair, data_range=2.0, scales=5, window=9),
        MONAI=lambda: peers.monai_ms_ssim(*pair),
        medmetric=lambda: peers.medmetric_ms_ssim(*pair),
    )
    for normalize in (False, True):
        compare(
            f"MS-SSIM, as published, {'real pairs' if normalize else 'with synthetic'}, full grid",
            lambda n=normalize: published.ms_ssim_pair(*pair, normalize=n),
            formula=lambda n=normalize: published_formulas.ms_ssim(*pair, normalize=n),
        )
    volumes = [smooth_pair(HALF.shape, weight)[1] for weight in np.linspace(0, 1, 12)]
    real, synthetic = volumes[::2], volumes[1::2]
    sides = {"real": real, "synthetic": synthetic}
    plan = published.plan_image_mmd(len(real), len(synthetic), seed=0)
    groups = [tuple(sides[c][i] for c, i in group) for group in plan if group[0][0] == "synthetic"]
    compare(
        "image MMD, as published, 6 + 6 half-grid volumes",
        lambda: published.image_mmd(real, synthetic, seed=0),
        formula=lambda: published_formulas.image_mmd(groups),
    )


def compare_encoders() -> None:
    """Compare ResNet-50 with medmetric's, filled with the same weights, on one half-grid volume."""
    import torch

    from core.encoders import medicalnet

    network = medicalnet.MedicalNet(medicalnet.R50).eval()
    medicalnet.set_random(network, 1)
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():  # a normalisation that does nothing would hide a wrong one
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    other = peers.medmetric_r50(network.state_dict())
    ours = medicalnet.for_inference(network)
    volume = torch.from_numpy(smooth_pair(HALF.shape, 0.3)[1])[None, None]
    norms: list[float] = []

    def first(module: torch.nn.Module) -> ArrayLike:
        with torch.inference_mode():
            found = module(volume)[0].numpy()
        norms.append(float(np.abs(found).max()))
        return found

    own, peer = measure.run(lambda: first(ours)), measure.run(lambda: first(other))
    measure.print_row(
        "ResNet-50 features, one half-grid volume",
        "medmetric",
        f"2048 numbers up to {norms[0]:.4g}",
        f"up to {norms[-1]:.4g}",
        f"{measure.difference(own.value, peer.value):.1e}",
        f"{own.seconds:.2f} s",
        f"{peer.seconds:.2f} s",
        f"{peer.seconds / own.seconds:.1f}×",
        measure.mib(own.peak),
        measure.mib(peer.peak),
    )


def exact_moments(n: int, d: int, spread: NDArray[np.float64], seed: int) -> Rows:
    """Rows with mean 0 and covariance diag(spread²), exactly and not only in expectation (n > d)."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    rows -= rows.mean(axis=0)
    q, _ = np.linalg.qr(rows)
    return q * np.sqrt(n - 1) * spread


def closed_forms() -> None:
    """Print what can be worked out by hand beside what the functions return."""
    measure.print_head("case", "closed form", "ours", "difference")

    def row(case: str, expected: float, found: float) -> None:
        measure.print_row(case, f"{expected:.8g}", f"{found:.8g}", f"{abs(found - expected):.1e}")

    d, rng = 64, np.random.default_rng(3)
    a, b, shift = rng.uniform(0.5, 2, d), rng.uniform(0.5, 2, d), rng.normal(size=d)
    real, synthetic = exact_moments(400, d, a, 1), exact_moments(300, d, b, 2) + shift
    row("FID, diagonal covariances: ‖δ‖² + Σ(a−b)²", float(shift @ shift + ((a - b) ** 2).sum()),
        features.frechet_distance(real, synthetic))  # fmt: skip
    wide, _ = cohorts(400, 2048)
    gap = np.full(2048, 0.01)
    row("FID, rows moved by δ, n < d: ‖δ‖²", float(gap @ gap), features.frechet_distance(wide, wide + gap))
    row("FID, rows scaled by c, n < d: (1−c)² Tr Σ", float(0.5**2 * wide.var(axis=0, ddof=1).sum()),
        features.frechet_distance(wide, 0.5 * (wide - wide.mean(0)) + wide.mean(0)))  # fmt: skip
    row("linear MMD², rows moved by δ: ‖δ‖² − 2 Tr Σ / n", float(gap @ gap - 2 * wide.var(axis=0, ddof=1).sum() / 400),
        features.mmd2(wide, wide + gap, kernel="linear"))  # fmt: skip
    two, far = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    e = np.exp
    row("RBF MMD² of {0, 1} and {2, 3}, h = 1", float(2 * e(-0.5) - (2 * e(-2) + e(-4.5) + e(-0.5)) / 2),
        features.mmd2(two, far, kernel="rbf", bandwidth=1.0))  # fmt: skip
    row("KID of {0, 1} and {2, 3}: 1 + 343 − (1 + 1 + 27 + 64)/2", 1 + 343 - 93 / 2,
        features.mmd2(two, far, kernel="polynomial"))  # fmt: skip
    line = rng.normal(size=(50, 1))
    row("sliced W2², one feature moved by 3: 9", 9.0, sliced.sliced_wasserstein(line, line + 3.0))
    x = smooth_pair(HALF.shape, 0.3)[0]
    row("MS-SSIM of a volume and itself", 1.0, images.ms_ssim(x, x, data_range=2.0, scales=4))
    ones = [np.full((4, 4, 4), v, dtype=np.float32) for v in (0.0, 0.5)]
    row("image MMD, as published, constant 0 against 0.5, 64 voxels: 64 / 4", 16.0,
        published.image_mmd([ones[0]] * 3, [ones[1]] * 3, seed=0))  # fmt: skip


def main() -> None:
    """Run the comparisons."""
    parts = ("features", "images", "encoders", "closed")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--root-width", type=int, default=512, help="features that the peers' roots get")
    parser.add_argument("--threads", type=int, default=1, help="for both sides")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    if absent := peers.missing():
        parser.exit(2, f"not installed: {', '.join(absent)}; run `make bench`\n")
    measure.limit_threads(options.threads)
    measure.print_machine()
    if set(options.only) - {"closed"}:
        measure.print_head(*HEAD)
    if "features" in options.only:
        compare_features(options.n, options.d, options.root_width)
    if "images" in options.only:
        compare_images()
    if "encoders" in options.only:
        compare_encoders()
    if "closed" in options.only:
        print()
        closed_forms()


if __name__ == "__main__":
    main()
