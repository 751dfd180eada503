"""Compare the metrics with their peers on the same arrays: time, memory, agreement; print one table.

Peers are the plain formula with SciPy's matrix root, MONAI and prdc. One that cannot be
imported is named and left out; medmetric takes MONAI's functions, so MONAI stands for it. Memory is the
peak of Python's allocations (tracemalloc) in a run of its own; PyTorch allocates elsewhere, so its peers
have none, and neither have peers that take longer than three seconds.

    python -m benchmarks.metrics [--n 400] [--d 2048]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

from core.metrics import features, images, neighbours
from core.volume import FULL

Run = Callable[[], float]
PEERS = ("monai", "prdc")
ROW = "{:<36} {:>9} {:>9} {:>8} {:>9} {:>9} {:>11}"


def plain_frechet(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Fréchet distance as usually written: covariances and SciPy's root of their product."""
    a, b = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    gap = real.mean(0) - synthetic.mean(0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real)


def measured(run: Run, repeats: int) -> tuple[float, float]:
    """Return the value and the least time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = run()
        times.append(time.perf_counter() - start)
    return value, min(times)


def peak(run: Run) -> float:
    """Peak of the allocations in MiB."""
    tracemalloc.start()
    run()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / 2**20


def compare(title: str, ours: Run, peer: Run, *, traced: bool = True) -> None:
    """Print one row: times, their ratio, memory and the relative difference of the values."""
    mine, own_time = measured(ours, 2)
    theirs, peer_time = measured(peer, 1)
    memory = f"{peak(peer):.0f} MiB" if traced and peer_time < 3 else "-"
    agreement = abs(mine - theirs) / max(abs(theirs), 1e-300)
    times = (f"{own_time:.3f} s", f"{peer_time:.3f} s", f"{peer_time / own_time:.1f}x")
    print(ROW.format(title, *times, f"{peak(ours):.0f} MiB", memory, f"{agreement:.1e}"), flush=True)


def installed(name: str) -> bool:
    """Whether a package can be imported with all it needs."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):  # also a build for another version of PyTorch
        return False
    return True


def compare_features(n: int, d: int) -> None:
    """Compare feature metrics on one pair of cohorts."""
    rng, scale = np.random.default_rng(0), np.arange(1, d + 1) ** -0.5
    real, synthetic = rng.normal(size=(n, d)) * scale, rng.normal(size=(n, d)) * scale + 0.05 * scale
    ours = lambda: features.frechet_distance(real, synthetic)  # noqa: E731
    compare("FID / scipy sqrtm", ours, lambda: plain_frechet(real, synthetic))
    if installed("monai"):
        compare_monai_features(real, synthetic)
    if installed("prdc"):
        compare_prdc(real, synthetic)


def compare_monai_features(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> None:
    """Compare with MONAI's FIDMetric on the first 512 features (its root takes long), and MMDMetric."""
    import torch
    from monai.metrics import FIDMetric, MMDMetric

    a, b = real[:, :512], synthetic[:, :512]
    peer = lambda: float(FIDMetric()(torch.from_numpy(b), torch.from_numpy(a)))  # noqa: E731
    compare("FID, width 512 / MONAI", lambda: features.frechet_distance(a, b), peer, traced=False)
    pair = [torch.from_numpy(rows)[:, None, :, None] for rows in (synthetic, real)]
    linear = lambda: features.mmd2(real, synthetic, kernel="linear")  # noqa: E731
    compare("MMD², linear / MONAI", linear, lambda: float(MMDMetric()(*pair)), traced=False)


def compare_prdc(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> None:
    """Compare precision, recall, density and coverage with the package of their authors."""
    import prdc

    found = neighbours.neighbour_shares(real, synthetic, k=5)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(real, synthetic, 5)
    for share in neighbours.SHARES:
        print(f"  {share}: {getattr(found, share):.6f}, prdc {expected[share]:.6f}")

    def peer() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return float(prdc.compute_prdc(real, synthetic, 5)["precision"])

    compare("PRDC / prdc", lambda: neighbours.neighbour_shares(real, synthetic, k=5).precision, peer)


def compare_images(shape: Sequence[int]) -> None:
    """Compare MS-SSIM of one pair of volumes with MONAI at the same window."""
    if not installed("monai"):
        return
    import torch
    from monai.metrics import MultiScaleSSIMMetric

    noise = [ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) for seed in (0, 1)]
    x, y = ((noise[0] + part * noise[1]).clip(-1, 1).astype(np.float32) for part in (0.0, 0.3))
    scales = images.scales_for(x.shape)
    total = sum(images.WEIGHTS[:scales]) if scales < len(images.WEIGHTS) else 1.0
    weights = tuple(weight / total for weight in images.WEIGHTS[:scales])
    metric = MultiScaleSSIMMetric(spatial_dims=3, data_range=2.0, kernel_size=9, weights=weights)
    volumes = [torch.from_numpy(v)[None, None] for v in (y, x)]
    compare(
        f"MS-SSIM, {'×'.join(map(str, shape))} / MONAI",
        lambda: images.ms_ssim(x, y, data_range=2.0, scales=scales, window=9),
        lambda: float(metric(*volumes)),
        traced=False,
    )


def main() -> None:
    """Run every comparison whose peer is installed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--d", type=int, default=2048)
    options = parser.parse_args()
    for name in PEERS:
        if not installed(name):
            print(f"{name}: cannot be imported, left out")
    print(ROW.format("ours / peer", "ours", "peer", "faster", "ours", "peer", "difference"))
    compare_features(options.n, options.d)
    compare_images(FULL.shape)  # MONAI refuses the half grid at this window


if __name__ == "__main__":
    main()
