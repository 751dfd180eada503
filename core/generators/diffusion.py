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
from core.generators.base import TRAINING_STEPS

EARLIEST_START = 980  # what starts from pure noise must not start much below the last time


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
    return _spread(steps, TRAINING_STEPS - 1)


def strided_times(steps: int) -> list[int]:
    """Return the training times of DDIM: multiples of 1000 // steps where those serve, otherwise spread evenly.

    50 steps start at 980, as published.
    """
    return _strided(steps, TRAINING_STEPS - 1, steps)


def continuous_times(steps: int) -> list[float]:
    """Return times in [0, 1]: multiples of 1000 // (steps - 1) thousandths where those serve, or spread evenly.

    51 network evaluations start at 1.0 and 31 at 0.99, as published; the last is at 0.
    """
    return [time / TRAINING_STEPS for time in _strided(steps, TRAINING_STEPS, max(steps - 1, 1))]


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


def _strided(steps: int, last: int, strides: int) -> list[int]:
    """Return ``steps`` multiples of a stride, unless their number or their distance from the last time is wrong."""
    times = range(0, last + 1, max(TRAINING_STEPS // strides, 1))
    serve = len(times) == steps and times[-1] >= EARLIEST_START
    return list(reversed(times)) if serve else _spread(steps, last)


def _spread(steps: int, last: int) -> list[int]:
    if steps > TRAINING_STEPS:
        what = f"expected at most {TRAINING_STEPS} steps, found {steps}."
        raise InputError(what, "steps", "These models are trained on as many noise levels; take fewer.")
    return [round(last - i * last / max(steps - 1, 1)) for i in range(steps)]
