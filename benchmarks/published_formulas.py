"""What the published evaluation computes, written down plainly: no streaming, no shortcut (Wu et al., MICCAI 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, ndimage

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def frechet(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Fréchet distance as usually written: covariances of ddof = 1 and SciPy's root of their product."""
    a, b = np.cov(real, rowvar=False), np.cov(synthetic, rowvar=False)
    gap = real.mean(0) - synthetic.mean(0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real)


def fid(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """FID with the first half of the real rows written twice each."""
    return frechet(_written_twice(real), synthetic)


def feature_mmd(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> float:
    """Sum over blocks of two rows of the biased linear MMD, ten passes, divided by N - 1."""
    x, y = _written_twice(real), synthetic
    total = 0.0
    for _ in range(10):
        for i in range(0, len(x) - 1, 2):
            total += _block(x[i : i + 2], y[i : i + 2])
    return total / (10 * (len(x) - 1))


def image_mmd(volumes: Sequence[tuple[NDArray[np.float32], ...]]) -> float:
    """Mean of the block value over groups of two synthetic and two real volumes."""
    values = []
    for first, second, third, fourth in volumes:
        synthetic = np.stack([first.ravel(), second.ravel()]).astype(np.float64)
        real = np.stack([third.ravel(), fourth.ravel()]).astype(np.float64)
        values.append(_block(real, synthetic))
    return float(np.mean(values))


def ms_ssim(x: NDArray[np.float32], y: NDArray[np.float32], *, normalize: bool) -> float:
    """MS-SSIM with reflecting Gaussian windows, data range 1 and the last factor multiplied in four times."""
    first, second = x.astype(np.float64), y.astype(np.float64)
    ssims, contrasts = [], []
    for scale in range(len(WEIGHTS)):
        if scale:
            first, second = _halved(first), _halved(second)
        ssim, contrast = _ssim(first, second)
        ssims.append((ssim + 1) / 2 if normalize else ssim)
        contrasts.append((contrast + 1) / 2 if normalize else contrast)
    last = ssims[-1] ** WEIGHTS[-1]
    return float(np.prod([c**w * last for c, w in zip(contrasts[:-1], WEIGHTS[:-1], strict=True)]))


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(ndimage.gaussian_filter(values, 1.5))

    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx**2, smooth(y * y) - my**2, smooth(x * y) - mx * my
    contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
    luminance = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
    return float((luminance * contrast).mean()), float(contrast.mean())


def _block(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((x @ x.T).sum() / 4 + (y @ y.T).sum() / 4 - (x @ y.T).sum() / 2)


def _written_twice(real: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.empty_like(real)
    for i in range(len(real)):
        out[i] = real[i // 2]
    return out


def _halved(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = (n // 2 * 2 for n in volume.shape)
    blocks = volume[:x, :y, :z].reshape(x // 2, 2, y // 2, 2, z // 2, 2)
    return np.asarray(blocks.mean(axis=(1, 3, 5)))
