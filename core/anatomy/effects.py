"""Regional volumes of two cohorts compared: effect sizes as published, with intervals, tests and verdicts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from core.anatomy import statistics
from core.anatomy.statistics import Floats, participant_codes
from core.anatomy.tables import TIV, check_volumes, regional_volumes, regions
from core.errors import InputError

MIN_CASES = 3
MIN_CASES_FOR_VERDICT = 10
MARGIN = 0.2  # |d| that still counts as equivalent
EFFECT_COLUMNS = (
    "group", "region", "cohens_d", "ci_low", "ci_high", "spread_ratio", "p_value", "q_value", "verdict",
    "n_real", "n_synthetic",
)  # fmt: skip
REGIONAL_COLUMNS = (
    *EFFECT_COLUMNS,
    "hedges_g", "tost_low", "tost_high", "tost_p", "wasserstein", "wasserstein_floor", "relative_difference",
    "pooled_cv", "people_real", "people_synthetic",
)  # fmt: skip


def effect_sizes(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    seed: int = 0,
    n_boot: int = 1000,
    margin: float = MARGIN,
    participants: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Compare regional volumes of a synthetic cohort with the real one; |d| near 0 is better.

    Parameters
    ----------
    real, synthetic : DataFrame
        SynthSeg's volume tables, see `read_volumes`; at least 3 subjects each.
    seed : int
        Of the bootstrap. The real cohort is drawn alike for every generator.
    n_boot : int
        Resamples of participants; the TIV regression is redone in each.
    margin : float
        Largest |d| that still counts as equivalent.
    participants : mapping of str to str, optional
        Real subject to participant: scans of one person are drawn together.

    Returns
    -------
    DataFrame
        One row for each region of Table 3, columns `EFFECT_COLUMNS`. ``cohens_d`` as published: TIV adjustment over
        the pooled rows, then (mean real - mean synthetic) / sqrt((var real + var synthetic) / 2), ddof = 0; positive
        means that the synthetic region is too small. ``ci_low``, ``ci_high``: 95 % percentile bootstrap.
        ``spread_ratio``: log(SD synthetic / SD real) after adjustment, 0 is best, below 0 too little variety.
        ``p_value``: Welch's t; ``q_value``: Benjamini-Hochberg over the regions. ``verdict``: see `verdicts`.
        Regions without volumes or without variance, and cohorts of fewer than 10 people, are *undetermined*;
        ``attrs["notes"]`` says why.

    Raises
    ------
    InputError
        Unusable tables, fewer than 3 subjects, margin or resample count out of range, csf in one cohort only.

    References
    ----------
    Wu et al., MICCAI 2024. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), doi:10.1007/BF01068419.
    """
    table = compare_regions(real, synthetic, seed=seed, n_boot=n_boot, margin=margin, participants=participants)
    result = table[list(EFFECT_COLUMNS)].copy()
    result.attrs.update(table.attrs)
    return result


def compare_regions(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    seed: int = 0,
    n_boot: int = 1000,
    margin: float = MARGIN,
    participants: Mapping[str, str] | None = None,
    synthetic_participants: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Compare regional volumes with everything that stands beside an effect size.

    Parameters
    ----------
    real, synthetic, seed, n_boot, margin, participants
        See `effect_sizes`.
    synthetic_participants : mapping of str to str, optional
        As ``participants``, for the synthetic cohort.

    Returns
    -------
    DataFrame
        Columns `REGIONAL_COLUMNS`: those of `effect_sizes`; ``hedges_g``; ``tost_low``, ``tost_high`` (90 % interval
        of d) and ``tost_p`` (equivalence within the margin); ``wasserstein`` of the adjusted volumes in SD of the real
        cohort with its ``wasserstein_floor`` (real against real at this size, 0 is best);
        ``relative_difference`` = 1 - mean synthetic / mean real after adjustment and ``pooled_cv``, the SD of d over
        the real mean; ``people_real`` and ``people_synthetic`` count participants.

    Raises
    ------
    InputError
        See `effect_sizes`.
    """
    if not margin > 0 or n_boot < 100:
        raise InputError(f"margin {margin} or n_boot {n_boot} is too small.", "effect_sizes", "Use > 0 and ≥ 100.")
    tables = [regional_cohort(real, "real volumes"), regional_cohort(synthetic, "synthetic volumes")]
    if tables[0]["csf"].isna().all() != tables[1]["csf"].isna().all():
        what = "one cohort was segmented with csf and the other without, so total intracranial means two things."
        raise InputError(what, "volume tables", "Segment both cohorts with the same version of SynthSeg.")
    codes = [
        participant_codes(table.index.tolist(), known)
        for table, known in zip(tables, (participants, synthetic_participants), strict=True)
    ]
    people = [int(code.max()) + 1 for code in codes]
    counts = [len(table) for table in tables]
    pooled = np.concatenate([table.to_numpy() for table in tables])
    tiv, values = pooled[:, 0], pooled[:, 1:]
    adjusted = statistics.adjust_for_tiv(values, tiv)
    first, second = np.split(adjusted, [counts[0]])
    least = statistics.NO_VARIANCE * (values**2).mean(axis=0)
    flat = ~(first.var(axis=0) + second.var(axis=0) > least)
    adjusted[:, flat] = np.nan  # also in `first` and `second`, which are views
    draws = statistics.bootstrap_d((first, second), np.split(tiv, [counts[0]]), codes, n_boot, seed)
    low, lower, upper, high = statistics.quantiles(draws, [0.025, 0.05, 0.95, 0.975])
    p = statistics.welch_p(first, second, codes)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = 1 - second.mean(axis=0) / first.mean(axis=0)
        spread = np.sqrt((first.var(axis=0) + second.var(axis=0)) / 2) / first.mean(axis=0)
    result = regions().assign(
        cohens_d=statistics.cohens_d(first, second), ci_low=low, ci_high=high,
        spread_ratio=statistics.spread_ratio(first, second, np.sqrt(least)),
        p_value=p, q_value=statistics.false_discovery(p), n_real=counts[0], n_synthetic=counts[1],
        hedges_g=statistics.hedges_g(first, second), tost_low=lower, tost_high=upper,
        tost_p=statistics.tost_p(draws, margin), wasserstein=statistics.wasserstein(first, second),
        wasserstein_floor=statistics.wasserstein_floor(first, counts[1], codes[0], seed), relative_difference=relative,
        pooled_cv=spread, people_real=people[0], people_synthetic=people[1],
    )  # fmt: skip
    result["verdict"] = verdicts(result, margin)
    result = result[list(REGIONAL_COLUMNS)]
    constant = regions()["region"][flat & np.isfinite(values).all(axis=0)].tolist()
    result.attrs["notes"] = _notes(tables, people, constant)
    return result


def verdicts(table: pd.DataFrame, margin: float) -> pd.Series:
    """Judge each row of a regional comparison at a margin of |d|.

    Parameters
    ----------
    table : DataFrame
        Columns ``tost_low``, ``tost_high``, ``q_value``, ``people_real`` and ``people_synthetic``.
    margin : float
        Largest |d| that still counts as equivalent.

    Returns
    -------
    Series of str
        *equivalent* when the 90 % interval lies inside ±margin (two one-sided tests at 5 %), else *different* when
        q < 0.05, else *undetermined*; fewer than 10 people in a cohort are always *undetermined*.
    """
    equivalent = (table["tost_low"] > -margin) & (table["tost_high"] < margin)
    verdict = np.where(equivalent, "equivalent", np.where(table["q_value"] < 0.05, "different", "undetermined"))
    few = table[["people_real", "people_synthetic"]].min(axis=1) < MIN_CASES_FOR_VERDICT
    return pd.Series(np.where(few, "undetermined", verdict), index=table.index)


def regional_cohort(volumes: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the regional volumes of a cohort that is large enough for statistics.

    Raises
    ------
    InputError
        Unusable table, fewer than 3 subjects.
    """
    if len(volumes) < MIN_CASES:
        what = f"{len(volumes)} subject(s); effect sizes need at least {MIN_CASES} in each cohort."
        raise InputError(what, where, "Add volumes to the cohort.")
    return regional_volumes(check_volumes(volumes, where))


def adjusted_regions(volumes: pd.DataFrame, where: str) -> tuple[pd.DataFrame, Floats]:
    """Return a cohort's regional volumes (49 columns) and the same with its own TIV slope removed."""
    table = regional_cohort(volumes, where)
    values = table.drop(columns=TIV)
    return values, statistics.adjust_for_tiv(values.to_numpy(), table[TIV].to_numpy())


def _notes(tables: list[pd.DataFrame], people: list[int], constant: list[str]) -> tuple[str, ...]:
    notes = [
        f"{name} cohort: {note}"
        for name, table in zip(("real", "synthetic"), tables, strict=True)
        for note in table.attrs["notes"]
    ]
    if constant:
        notes.append(f"no variance left after TIV adjustment: {', '.join(constant)}")
    if min(people) < MIN_CASES_FOR_VERDICT:
        notes.append(f"fewer than {MIN_CASES_FOR_VERDICT} subjects in a cohort: no verdict is given")
    return tuple(notes)
