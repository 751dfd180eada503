"""Noise schedules and sampling steps of the diffusion models.

A schedule is alphabar, the share of the signal's variance at a time. Schedules are float64 tensors; a step from a
time to an earlier one takes the alphabar of both, so that it is right for any spacing of the times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from core.errors import InputError

TRAINING_STEPS = 1000


def linear_alphabar(first: float, last: float, scaled: bool = False) -> Tensor:
    """Return the alphabar of linear betas, or with ``scaled`` of betas whose root is linear; (1000,)."""
    power = 2 if scaled else 1
    betas = torch.linspace(first ** (1 / power), last ** (1 / power), TRAINING_STEPS, dtype=torch.float64) ** power
    return torch.cumprod(1 - betas, 0)


def cosine_alphabar(time: Tensor, clamp: float) -> Tensor:
    """Return the continuous cosine alphabar of times in [0, 1], kept ``clamp`` away from 0 and 1; in float64.

    Unlike Nichol and Dhariwal's it is not divided by its value at time 0.
    """
    angle = (time.double() + 0.008) / 1.008 * (math.pi / 2)
    return angle.cos().square().clamp(clamp, 1 - clamp)


def spread_times(steps: int) -> list[int]:
    """Return training times spread evenly from the last to 0, both included, as respaced DDPM takes them."""
    _refuse_too_many(steps)
    gap = (TRAINING_STEPS - 1) / max(steps - 1, 1)
    return [round(TRAINING_STEPS - 1 - i * gap) for i in range(steps)]


def strided_times(steps: int) -> list[int]:
    """Return the times of DDIM: multiples of the stride 1000 // steps, the latest first."""
    _refuse_too_many(steps)
    stride = TRAINING_STEPS // steps
    return [i * stride for i in reversed(range(steps))]


def continuous_times(steps: int) -> list[float]:
    """Return times in [0, 1] for ``steps`` network evaluations, the last at 0.

    Their stride is 1000 // (steps - 1) thousandths: 51 evaluations start at 1.0, 31 at 0.99, as published.
    """
    _refuse_too_many(steps)
    stride = TRAINING_STEPS // (steps - 1) if steps > 1 else 0
    return [i * stride / TRAINING_STEPS for i in reversed(range(steps))] if stride else [1.0]


def pairs(alphabar: Tensor, times: list[int]) -> Iterator[tuple[int, float, float]]:
    """Yield each time with the alphabar there and at the next time; after the last there is no noise left."""
    values = [float(alphabar[t]) for t in times]
    yield from zip(times, values, [*values[1:], 1.0], strict=True)


def noised(clean: Tensor, noise: Tensor, alphabar: Tensor) -> Tensor:
    """Mix clean tensors (b, …) with noise; alphabar (b,)."""
    share = alphabar.to(clean.device).reshape(-1, *[1] * (clean.ndim - 1))
    return share.sqrt().to(clean.dtype) * clean + (1 - share).sqrt().to(clean.dtype) * noise


def without_noise(noisy: Tensor, noise: Tensor, alphabar: float) -> Tensor:
    """Return the clean tensor that gives ``noisy`` with this noise."""
    return (noisy - math.sqrt(1 - alphabar) * noise) / math.sqrt(alphabar)


def ddim_step(noisy: Tensor, clean: Tensor, alphabar: float, before: float) -> Tensor:
    """Move to alphabar ``before`` without new noise, eta 0; Song et al. 2021, arXiv 2010.02502."""
    noise = (noisy - math.sqrt(alphabar) * clean) / math.sqrt(1 - alphabar)
    return math.sqrt(before) * clean + math.sqrt(1 - before) * noise


def ancestral_step(noisy: Tensor, clean: Tensor, alphabar: float, before: float, noise: Tensor) -> Tensor:
    """Draw at alphabar ``before``, with the larger of the two fixed variances; Ho et al. 2020, arXiv 2006.11239.

    Without noise left (``before`` 1) it is the clean tensor.
    """
    alpha = alphabar / before
    beta = 1 - alpha
    of_clean, of_noisy = math.sqrt(before) * beta, math.sqrt(alpha) * (1 - before)
    mean = (of_clean * clean + of_noisy * noisy) / (1 - alphabar)
    return mean + math.sqrt(beta) * noise if before < 1 else mean


def _refuse_too_many(steps: int) -> None:
    if steps > TRAINING_STEPS:
        what = f"expected at most {TRAINING_STEPS} steps, found {steps}."
        raise InputError(what, "steps", "These models are trained on as many noise levels; take fewer.")
