"""How regions go together, in real against synthetic brains: correlation, left against right, age and sex."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from core.anatomy import statistics
from core.anatomy.effects import MIN_CASES_FOR_VERDICT, adjusted_regions, regional_cohort
from core.anatomy.statistics import Codes, Floats, participant_codes
from core.anatomy.tables import TIV, check_volumes, regions, structures
from core.errors import InputError

PERMUTATIONS = 500
PAIR_COLUMNS = ("region_a", "region_b", "r_real", "r_synthetic", "difference", "p_value", "q_value")
ASYMMETRY_COLUMNS = (
    "group", "region", "mean_real", "mean_synthetic", "sd_real", "sd_synthetic", "cohens_d", "ci_low", "ci_high",
    "spread_ratio", "wasserstein", "wasserstein_floor", "p_value", "q_value", "n_real", "n_synthetic",
)  # fmt: skip
SLOPE_COLUMNS = (
    "group", "region", "term", "unit", "real", "real_low", "real_high", "synthetic", "synthetic_low", "synthetic_high",
    "difference", "p_value", "q_value", "n_real", "n_synthetic",
)  # fmt: skip
SLOPE_UNITS = {"age": "% of the real mean per decade", "sex": "men minus women, % of the real mean"}
MIN_CASES_FOR_SLOPES = MIN_CASES_FOR_VERDICT


@dataclass(frozen=True)
class CorrelationDifference:
    """How far apart the correlation matrices of two cohorts are.

    Parameters
    ----------
    frobenius : float
        Norm of the difference of both matrices, 0 is best.
    floor : float
        The same between random halves of the real cohort, carried to this size: what a perfect generator would score.
    p_value : float
        Share of permutations of the cohort labels with a difference at least as large.
    pairs : DataFrame
        Columns `PAIR_COLUMNS`, one row for each pair of regions.
    n_regions, n_real, n_synthetic : int
        What was compared.
    """

    frobenius: float
    floor: float
    p_value: float
    pairs: pd.DataFrame
    n_regions: int
    n_real: int
    n_synthetic: int


def correlation_difference(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    seed: int,
    n_permutations: int = PERMUTATIONS,
    participants: Mapping[str, str] | None = None,
) -> CorrelationDifference:
    """Compare how the volumes of regions correlate over people, TIV removed in each cohort on its own.

    Parameters
    ----------
    real, synthetic : DataFrame
        SynthSeg's volume tables, at least 10 subjects each.
    seed : int
        Of permutations and splits.
    n_permutations : int
        Of the cohort labels, after both cohorts are standardised, so that only correlation can differ.
    participants : mapping of str to str, optional
        Real subject to participant; the halves behind the floor split people.

    Raises
    ------
    InputError
        Unusable tables, fewer than 10 subjects, fewer than two regions with variance.
    """
    tables = [adjusted_regions(real, "real volumes"), adjusted_regions(synthetic, "synthetic volumes")]
    n, m = (len(values) for _, values in tables)
    if min(n, m) < MIN_CASES_FOR_VERDICT:
        what = f"{min(n, m)} subjects; correlations need at least {MIN_CASES_FOR_VERDICT} in each cohort."
        raise InputError(what, "real volumes" if n <= m else "synthetic volumes", "Add volumes to the cohort.")
    least = [statistics.NO_VARIANCE * (table.to_numpy() ** 2).mean(axis=0) for table, _ in tables]
    varies = np.all([v.var(axis=0) > low for (_, v), low in zip(tables, least, strict=True)], axis=0)
    if varies.sum() < 2:
        raise InputError("fewer than two regions vary in both cohorts.", "volume tables", "Check the segmentation.")
    names = tables[0][0].columns[varies].tolist()
    first, second = (_standardised(values[:, varies]) for _, values in tables)
    r_real, r_synthetic = _correlation(first), _correlation(second)
    frobenius = float(np.linalg.norm(r_synthetic - r_real))
    pooled, rng = np.concatenate([first, second]), np.random.default_rng([seed, 11])
    exceeding = 0
    for _ in range(n_permutations):
        rows = pooled[rng.permutation(n + m)]
        exceeding += int(np.linalg.norm(_correlation(rows[:n]) - _correlation(rows[n:])) >= frobenius)
    codes = participant_codes(tables[0][0].index.tolist(), participants)
    return CorrelationDifference(
        frobenius=frobenius,
        floor=_correlation_floor(first, m, codes, seed),
        p_value=float((1 + exceeding) / (1 + n_permutations)),
        pairs=_pairs(names, r_real, r_synthetic, n, m),
        n_regions=len(names),
        n_real=n,
        n_synthetic=m,
    )


def asymmetry_index(volumes: pd.DataFrame) -> pd.DataFrame:
    """Return (left - right) / mean of both for each paired region: 0 is symmetric, positive means a larger left.

    Parameters
    ----------
    volumes : DataFrame
        SynthSeg's volume table.

    Returns
    -------
    DataFrame
        Subjects x regions of Table 3 that have two sides; NaN where both sides are empty or absent.
    """
    table = check_volumes(volumes, "volume table")
    paired = structures().query("region != '' and side != ''")
    names = paired.pivot_table("name", "region", "side", aggfunc="first")
    order = [region for region in regions()["region"] if region in names.index]
    left, right = (table.reindex(columns=names.loc[order, side]).set_axis(order, axis=1) for side in ("left", "right"))
    total = left + right
    return (2 * (left - right) / total.where(total > 0)).astype(float)


def compare_asymmetry(
    real: pd.DataFrame,
    synthetic: pd.DataFrame,
    *,
    seed: int,
    n_boot: int = 1000,
    participants: Mapping[str, str] | None = None,
    synthetic_participants: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Compare the asymmetry index of each paired region between two cohorts.

    Returns
    -------
    DataFrame
        Columns `ASYMMETRY_COLUMNS`. ``cohens_d``, ``spread_ratio``, ``wasserstein`` and its floor as for volumes but
        without TIV adjustment, since the index has no size; positive d: real brains are more left-heavy.

    Raises
    ------
    InputError
        Unusable tables, fewer than 3 subjects.
    """
    for volumes, where in ((real, "real volumes"), (synthetic, "synthetic volumes")):
        regional_cohort(volumes, where)
    tables = [asymmetry_index(real), asymmetry_index(synthetic)]
    codes = [
        participant_codes(table.index.tolist(), known)
        for table, known in zip(tables, (participants, synthetic_participants), strict=True)
    ]
    first, second = (table.to_numpy().copy() for table in tables)
    flat = ~(first.var(axis=0) + second.var(axis=0) > statistics.NO_VARIANCE)
    first[:, flat], second[:, flat] = np.nan, np.nan
    sizeless = [np.zeros(len(first)), np.zeros(len(second))]
    low, high = statistics.quantiles(
        statistics.bootstrap_d((first, second), sizeless, codes, n_boot, seed), [0.025, 0.975]
    )
    p = statistics.welch_p(first, second, codes)
    table = regions().query("region in @tables[0].columns").reset_index(drop=True)
    table = table.assign(
        mean_real=first.mean(axis=0), mean_synthetic=second.mean(axis=0),
        sd_real=first.std(axis=0), sd_synthetic=second.std(axis=0),
        cohens_d=statistics.cohens_d(first, second), ci_low=low, ci_high=high,
        spread_ratio=statistics.spread_ratio(first, second),
        wasserstein=statistics.wasserstein(first, second),
        wasserstein_floor=statistics.wasserstein_floor(first, len(second), codes[0], seed),
        p_value=p, q_value=statistics.false_discovery(p), n_real=len(first), n_synthetic=len(second),
    )  # fmt: skip
    return table[list(ASYMMETRY_COLUMNS)]


def compare_slopes(
    real: pd.DataFrame, people: pd.DataFrame, synthetic: pd.DataFrame | None, synthetic_people: pd.DataFrame | None
) -> pd.DataFrame:
    """Compare how regions change with age, and between the sexes, at equal head size.

    Parameters
    ----------
    real, synthetic : DataFrame
        SynthSeg's volume tables; ``synthetic`` may be None: then the real slopes stand alone.
    people, synthetic_people : DataFrame
        Index ``subject``; columns ``age`` (years, NaN unknown), ``sex`` ("F", "M" or ""), ``participant``.

    Returns
    -------
    DataFrame
        Columns `SLOPE_COLUMNS`, one row a region and term (``age``, ``sex``): coefficients of
        ``volume ~ 1 + TIV + age + sex`` in % of the real mean, 95 % intervals from a variance summed over participants
        (CR1), ``difference`` = synthetic - real with its p and Benjamini-Hochberg q. A sex that does not vary, or
        fewer than 10 subjects with age and sex, leave blanks; ``attrs["notes"]`` says why.

    References
    ----------
    Liang & Zeger, Biometrika 73 (1986), doi:10.1093/biomet/73.1.13.
    """
    scale = regional_cohort(real, "real volumes").drop(columns=TIV).mean(axis=0).to_numpy()
    sides = {"real": _fit_slopes(real, people, scale)}
    if synthetic is None or synthetic_people is None:
        sides["synthetic"] = Slopes.unknown(len(scale), "age and sex are not known")
    else:
        sides["synthetic"] = _fit_slopes(synthetic, synthetic_people, scale)
    parts = []
    for index, (term, unit) in enumerate(SLOPE_UNITS.items()):
        a, b = sides["real"], sides["synthetic"]
        difference = b.value[index] - a.value[index]
        error = np.hypot(a.error[index], b.error[index])
        with np.errstate(divide="ignore", invalid="ignore"):
            freedom = error**4 / (a.error[index] ** 4 / a.freedom + b.error[index] ** 4 / b.freedom)
            p = 2 * stats.t.sf(np.abs(difference) / error, freedom)
        part = regions().assign(term=term, unit=unit, difference=difference, p_value=p)
        part = part.assign(q_value=statistics.false_discovery(p), n_real=a.n, n_synthetic=b.n)
        for name, side in sides.items():
            half = stats.t.ppf(0.975, side.freedom) * side.error[index]
            part[name] = side.value[index]
            part[f"{name}_low"], part[f"{name}_high"] = side.value[index] - half, side.value[index] + half
        parts.append(part)
    result = pd.concat(parts, ignore_index=True)[list(SLOPE_COLUMNS)]
    result.attrs["notes"] = tuple(f"{name} cohort: {side.note}" for name, side in sides.items() if side.note)
    return result


@dataclass(frozen=True)
class Slopes:
    """Coefficients of age and sex by region in %, shape (2, regions), their standard errors, and what was fitted."""

    value: Floats
    error: Floats
    freedom: float
    n: int
    note: str

    @classmethod
    def unknown(cls, width: int, note: str, n: int = 0) -> Slopes:
        """Return blanks with the reason."""
        blank = np.full((2, width), np.nan)
        return cls(blank, blank, np.nan, n, note)


def _fit_slopes(volumes: pd.DataFrame, people: pd.DataFrame, scale: Floats) -> Slopes:
    table = regional_cohort(volumes, "volumes")
    known = people.reindex(table.index)
    usable = (known["age"].notna() & known["sex"].isin(["F", "M"])).to_numpy()
    n = int(usable.sum())
    if n < MIN_CASES_FOR_SLOPES:
        return Slopes.unknown(len(scale), f"{n} subjects with age and sex, {MIN_CASES_FOR_SLOPES} are needed", n)
    table, known = table[usable], known[usable]
    names = known["participant"].fillna("").astype(str)
    codes = participant_codes(table.index.tolist(), dict(zip(table.index, names, strict=True)))
    terms = {"TIV": table[TIV], "age": known["age"] / 10, "sex": (known["sex"] == "M").astype(float)}
    kept = [name for name, values in terms.items() if values.std() > 0]
    design = np.column_stack([np.ones(n), *((terms[k] - terms[k].mean()) / terms[k].std() for k in kept)])
    values = table.drop(columns=TIV).to_numpy() / scale * 100
    inverse = np.linalg.pinv(design.T @ design)
    beta = inverse @ design.T @ values
    error = _clustered_error(design, values - design @ beta, inverse, codes)
    out, spread = np.full((2, len(scale)), np.nan), np.full((2, len(scale)), np.nan)
    for row, name in enumerate(("age", "sex")):
        if name in kept:
            unit = float(terms[name].std())
            out[row], spread[row] = beta[1 + kept.index(name)] / unit, error[1 + kept.index(name)] / unit
    note = "; ".join(f"{name} does not vary" for name in ("age", "sex") if name not in kept)
    return Slopes(out, spread, float(codes.max() + 1 - design.shape[1]), n, note)


def _clustered_error(design: Floats, residual: Floats, inverse: Floats, codes: Codes) -> Floats:
    """Return standard errors, shape (terms, regions), by the sandwich summed over participants."""
    groups, (n, terms) = int(codes.max()) + 1, design.shape
    scores = np.zeros((groups, terms, residual.shape[1]))
    np.add.at(scores, codes, design[:, :, None] * residual[:, None, :])
    meat = np.einsum("gtr,gur->rtu", scores, scores)
    small = groups / max(groups - 1, 1) * (n - 1) / max(n - terms, 1)
    return np.sqrt(small * np.einsum("tu,ruv,vt->tr", inverse, meat, inverse))


def _standardised(values: Floats) -> Floats:
    return np.asarray((values - values.mean(axis=0)) / values.std(axis=0))


def _correlation(values: Floats) -> Floats:
    z = _standardised(values)
    return np.asarray(z.T @ z / len(z))


def _correlation_floor(real: Floats, m: int, codes: Codes, seed: int) -> float:
    size = np.sqrt(1 / len(real) + 1 / m)
    draws = [
        np.linalg.norm(_correlation(real[mask]) - _correlation(real[~mask])) * size / rate
        for mask, rate in statistics.halves(codes, seed)
        if min(mask.sum(), (~mask).sum()) >= 3 and min(real[mask].std(axis=0).min(), real[~mask].std(axis=0).min()) > 0
    ]
    return float(np.mean(draws)) if draws else float("nan")


def _pairs(names: list[str], r_real: Floats, r_synthetic: Floats, n: int, m: int) -> pd.DataFrame:
    """Test each pair by Fisher's z; one covariate, TIV, was removed."""
    a, b = np.triu_indices(len(names), 1)
    first, second = r_real[a, b], r_synthetic[a, b]
    limit = 1 - 1e-12
    gap = np.arctanh(np.clip(second, -limit, limit)) - np.arctanh(np.clip(first, -limit, limit))
    p = 2 * stats.norm.sf(np.abs(gap) / np.sqrt(1 / (n - 4) + 1 / (m - 4)))
    columns = {"region_a": np.array(names)[a], "region_b": np.array(names)[b], "r_real": first, "r_synthetic": second}
    columns |= {"difference": second - first, "p_value": p, "q_value": statistics.false_discovery(p)}
    return pd.DataFrame(columns)[list(PAIR_COLUMNS)]
