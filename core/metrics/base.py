"""What a metric says about itself, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

CohortName = Literal["real", "synthetic"]
Group = tuple[tuple[CohortName, int], ...]
Setting = str | int | float | None


@dataclass(frozen=True)
class CurvePoint:
    """Mean of an estimate over random subsets of ``n`` subjects of each cohort, and its spread over them.

    ``ci_low`` and ``ci_high`` lie 1.96 standard deviations of the subsets beside the mean; None where
    there is but one subset.
    """

    n: int
    value: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Score:
    """One number with its interval, its floor and what it was computed from.

    Parameters
    ----------
    value : float or None
        The estimate; None is a gap, explained in ``warnings``.
    ci_low, ci_high : float or None
        95 % interval for the expected value of the estimate at these cohort sizes; None when
        there are too few volumes for one.
    floor : float or None
        The same estimate, real volumes against real volumes.
    n_real, n_synthetic : int
        Volumes in each cohort.
    settings : dict
        Every choice that changes the number.
    warnings : tuple of str
        What a reader must know before comparing it.
    p_value : float or None
        Permutation test of equal distributions, where the metric has one.
    curve : tuple of CurvePoint
        The estimate at growing cohort sizes, where the metric has one.
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    floor: float | None
    n_real: int
    n_synthetic: int
    settings: dict[str, Setting] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    p_value: float | None = None
    curve: tuple[CurvePoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the score as plain JSON types."""
        return {**asdict(self), "warnings": list(self.warnings), "curve": [asdict(point) for point in self.curve]}


class Evaluate(Protocol):
    """Score two cohorts of features: (n, d) real and (m, d) synthetic."""

    def __call__(self, real: NDArray[np.floating], synthetic: NDArray[np.floating], *, seed: int, n_boot: int) -> Score:
        """Return the score; ``n_boot`` = 0 leaves out the interval."""


class EvaluateGram(Protocol):
    """Score two cohorts of volumes from their inner products."""

    def __call__(self, products: NDArray[np.float64], n_real: int, *, seed: int, n_boot: int) -> Score:
        """Return the score; ``products`` (n + m, n + m) come from `core.metrics.gram.gram_matrix`, real rows first."""


class Plan(Protocol):
    """Say which groups of volumes to measure."""

    def __call__(self, n_real: int, n_synthetic: int, *, seed: int) -> list[Group]:
        """Return the groups; one that appears twice counts twice and needs measuring once."""


class Measure(Protocol):
    """Measure one group of volumes."""

    def __call__(self, *volumes: NDArray[np.floating], cohorts: Sequence[CohortName]) -> float:
        """Return the value of the group; ``cohorts`` says where each volume comes from."""


class Summarise(Protocol):
    """Turn the values of all groups into one score."""

    def __call__(
        self,
        groups: Sequence[Group],
        values: Sequence[float],
        *,
        n_real: int,
        n_synthetic: int,
        seed: int,
        n_boot: int,
    ) -> Score:
        """Return the score; NaN values are left out and counted, ``n_boot`` = 0 leaves out the interval."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What tables, plots and reports need to know about a metric.

    Parameters
    ----------
    name : str
        Name in metrics.csv.
    variant : {"corrected", "published"}
        The right estimator, or the numbers of the published code with its quirks.
    label, unit, meaning, reference : str
        Heading, unit ("" when it has none), one plain sentence, citation with DOI or arXiv number.
    direction : {"lower", "higher", "match real"}
        Where good values lie; "match real" means at the floor.
    range : tuple of float
        Least and greatest possible value.
    least_n : int
        Fewest volumes of each cohort for which the number exists.
    version : int
        Raised whenever the numbers change.
    """

    name: str
    label: str
    variant: Literal["corrected", "published"]
    unit: str
    direction: Literal["lower", "higher", "match real"]
    range: tuple[float, float]
    least_n: int
    reference: str
    meaning: str
    version: int

    @property
    def key(self) -> str:
        """Key in ``METRICS``: the name, followed by /published for the published variant."""
        return self.name if self.variant == "corrected" else f"{self.name}/published"

    @property
    def inputs(self) -> Literal["features", "gram", "volumes"]:
        """What the metric compares; features are compared once for every encoder."""
        if isinstance(self, FeatureMetric):
            return "features"
        return "gram" if isinstance(self, GramMetric) else "volumes"


def badness(low: float, high: float, direction: str, floor: float) -> tuple[float, float]:
    """Return the interval of how bad a score is: lower is better whatever the metric's direction."""
    if direction == "higher":
        return -high, -low
    if direction == "match real" and np.isfinite(floor):
        distances = abs(low - floor), abs(high - floor)
        return (0.0 if low <= floor <= high else min(distances)), max(distances)
    return low, high


@dataclass(frozen=True, kw_only=True)
class FeatureMetric(Metric):
    """A metric of two feature matrices."""

    evaluate: Evaluate


@dataclass(frozen=True, kw_only=True)
class GramMetric(Metric):
    """A metric of volumes that needs only their inner products, so one pass over the files serves all cohorts."""

    evaluate: EvaluateGram


@dataclass(frozen=True, kw_only=True)
class VolumeMetric(Metric):
    """A metric of many small groups of volumes, so that workers share and cache the work."""

    plan: Plan
    measure: Measure
    summarise: Summarise
