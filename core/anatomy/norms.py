"""Single cases against the real cohort, regions to exclude, and the noise floor of a segmentation engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.anatomy import statistics
from core.anatomy.effects import regional_cohort
from core.anatomy.statistics import Floats
from core.anatomy.tables import DATA, TIV, check_volumes, regional_volumes, regions
from core.errors import InputError

LARGE_EFFECT = 0.8  # the paper's bound, a large effect by Cohen
EXCLUSION_COLUMNS = ("group", "region", "cohens_d", "ci_low", "ci_high", "bound", "certain")
NORM_COLUMNS = ("subject", "group", "region", "volume", "z", "percentile")
FLOOR_COLUMNS = ("region", "relative_sd", "sd_in_d_units", "n_anatomies", "n_renderings")


def exclusions(effects: pd.DataFrame, bound: float = LARGE_EFFECT) -> pd.DataFrame:
    """List the regions for which a generator's MRIs should not be used: |d| beyond a bound, largest first.

    Parameters
    ----------
    effects : DataFrame
        Rows of one comparison, columns of `effect_sizes`; other columns (``cohort``, …) are kept.
    bound : float
        0.8 in the paper.

    Returns
    -------
    DataFrame
        Columns `EXCLUSION_COLUMNS` after those kept; ``certain``: the whole 95 % interval lies beyond the bound.

    Raises
    ------
    InputError
        Bound not above 0.

    References
    ----------
    Wu et al., MICCAI 2024, arXiv:2409.08463.
    """
    if not bound > 0:
        raise InputError(f"exclusion bound {bound} is not above 0.", "exclusions", "The paper takes 0.8.")
    table = effects[effects["cohens_d"].abs() > bound]
    beyond = np.where(table["cohens_d"] > 0, table["ci_low"] > bound, table["ci_high"] < -bound)
    table = table.assign(bound=bound, certain=beyond.astype(bool))
    leading = [name for name in ("cohort", "gated") if name in table]
    table = table.sort_values("cohens_d", key=lambda d: -d.abs(), kind="stable")
    return table[[*leading, *EXCLUSION_COLUMNS]].reset_index(drop=True)


def count_effects(effects: pd.DataFrame, bound: float = LARGE_EFFECT) -> pd.DataFrame:
    """Count for each cohort the regions where it is best (smallest |d|) and where |d| is beyond a bound.

    Parameters
    ----------
    effects : DataFrame
        Columns cohort, region, cohens_d; a region counts as won only where every cohort has a value. Of equal |d| the
        first cohort wins.

    Returns
    -------
    DataFrame
        Index cohort in the order given, columns ``best``, ``beyond``, ``regions``.
    """
    table = effects.pivot_table("cohens_d", "region", "cohort", sort=False, dropna=False).abs()
    table = table.reindex(columns=list(dict.fromkeys(effects["cohort"])))
    best = table.dropna().idxmin(axis=1).value_counts().reindex(table.columns, fill_value=0)
    counts = {"best": best, "beyond": (table > bound).sum(), "regions": table.notna().sum()}
    return pd.DataFrame(counts).rename_axis("cohort")


def normative_percentiles(real: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Place the regional volumes of single cases in the real cohort, at equal head size.

    Parameters
    ----------
    real, cases : DataFrame
        SynthSeg's volume tables. A case that is itself in ``real`` is left out of its own reference.

    Returns
    -------
    DataFrame
        Columns `NORM_COLUMNS`: ``volume`` in mm³ as measured; ``z`` = deviation from the volume expected at the case's
        TIV, in SD (ddof = 1) of the real deviations; ``percentile`` = share of real people below, in %, half of ties
        counted. No correction for age or sex.

    Raises
    ------
    InputError
        Unusable tables, fewer than 3 real subjects.
    """
    norm = regional_cohort(real, "real volumes")
    table = regional_volumes(check_volumes(cases, "cases"))
    place = norm.index.get_indexer(table.index)
    own = (place >= 0) & (norm.take(place).fillna(-1).to_numpy() == table.fillna(-1).to_numpy()).all(axis=1)
    names, shape = regions(), (len(table), len(regions()))
    z, percentile = np.empty(shape), np.empty(shape)
    z[~own], percentile[~own] = _against(norm, table[~own])
    z[own], percentile[own] = (found[place[own]] for found in _against_others(norm))
    rows = {
        "subject": np.repeat(table.index.to_numpy(), len(names)),
        "volume": table.drop(columns=TIV).to_numpy().ravel(),
    }
    # Names as categories: as text they would take most of the memory of a large cohort.
    columns = {
        name: pd.Categorical.from_codes(np.tile(codes, len(table)), kinds)
        for name in ("group", "region")
        for codes, kinds in [pd.factorize(names[name])]
    }
    result = pd.DataFrame(rows | columns | {"z": z.ravel(), "percentile": percentile.ravel()})
    return result[list(NORM_COLUMNS)]


def noise_floor(volumes: pd.DataFrame, anatomies: Sequence[str]) -> pd.DataFrame:
    """Measure how much a segmentation engine varies when the same anatomy is rendered again.

    Parameters
    ----------
    volumes : DataFrame
        SynthSeg's volume table, one row a rendering.
    anatomies : sequence of str
        The anatomy of each row; at least two anatomies and one with two renderings.

    Returns
    -------
    DataFrame
        Columns `FLOOR_COLUMNS`: ``relative_sd`` = SD between renderings of one anatomy over the mean volume;
        ``sd_in_d_units`` = the same SD, TIV removed, over the SD between these anatomies.

    Raises
    ------
    InputError
        One anatomy for each row is missing, or nothing was rendered twice.
    """
    table = regional_volumes(check_volumes(volumes, "repeated volumes"))
    groups = pd.Series(list(anatomies), dtype=object).astype(str)
    if len(groups) != len(table):
        what = f"{len(table)} volumes and {len(groups)} anatomies."
        raise InputError(what, "anatomies", "Name the anatomy of every volume.")
    codes = groups.factorize()[0]
    kinds = int(codes.max()) + 1
    if kinds < 2 or kinds == len(codes):
        what = f"{len(codes)} volumes of {kinds} anatomies: the noise needs two renderings of one and two anatomies."
        raise InputError(what, "repeated volumes", "Render anatomies again with another contrast.")
    values = table.drop(columns=TIV).to_numpy()
    adjusted = statistics.adjust_for_tiv(values, table[TIV].to_numpy())
    within, _ = _components(values, codes)
    noise, people = _components(adjusted, codes)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {"relative_sd": within / values.mean(axis=0), "sd_in_d_units": noise / people}
    result = regions()[["region"]].assign(**columns, n_anatomies=kinds, n_renderings=len(codes))
    return result[list(FLOOR_COLUMNS)]


def read_noise_floor(engine: str, folder: Path | None = None) -> pd.DataFrame | None:
    """Return the noise floor an engine ships (``data/noise_floor_<engine>.csv``), None when it is not known."""
    path = (folder or DATA) / f"noise_floor_{engine}.csv"
    return pd.read_csv(path) if path.is_file() else None


def noise_in_d(effects: pd.DataFrame, floor: pd.DataFrame | None) -> pd.Series:
    """Return the engine's noise in units of d of this comparison, NaN where it is not known.

    A difference in contrast between two cohorts can move the mean of a region by about as much as one rendering differs
    from another: ``relative_sd`` over ``pooled_cv``. A |d| below that may be the engine, not the anatomy.

    Parameters
    ----------
    effects : DataFrame
        Columns region and pooled_cv of `compare_regions`.
    floor : DataFrame or None
        See `noise_floor`.
    """
    if floor is None:
        return pd.Series(np.nan, index=effects.index)
    relative = effects["region"].map(floor.set_index("region")["relative_sd"])
    return relative / effects["pooled_cv"]


def _against(norm: pd.DataFrame, cases: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return z and percentile of cases in a cohort, (cases, regions) each."""
    tiv, values = norm[TIV].to_numpy(), norm.drop(columns=TIV).to_numpy()
    centred = tiv - tiv.mean()
    power = float(centred @ centred)
    slopes = centred @ (values - values.mean(axis=0)) / power if power > 0 else np.zeros(values.shape[1])
    spread = np.sort(values - values.mean(axis=0) - centred[:, None] * slopes, axis=0)
    deviation = cases.drop(columns=TIV).to_numpy() - values.mean(axis=0)
    deviation = deviation - (cases[TIV].to_numpy() - tiv.mean())[:, None] * slopes
    below = [
        [np.searchsorted(column, sought, side) for column, sought in zip(spread.T, deviation.T, strict=True)]
        for side in ("left", "right")
    ]
    return _placed(deviation, spread.std(axis=0, ddof=1), values, np.mean(below, axis=0).T / len(spread))


def _against_others(norm: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return z and percentile of each case of a cohort among its other cases, (n, regions) each.

    Means, slopes and SD without a case follow from those with it; only the comparison with each other case is left.
    """
    tiv, values, n = norm[TIV].to_numpy(), norm.drop(columns=TIV).to_numpy(), len(norm)
    head, rest, more = (tiv - tiv.mean())[:, None], values - values.mean(axis=0), n / (n - 1)
    power = (head**2).sum() - more * head**2
    along = (head * rest).sum(axis=0) - more * head * rest
    known = power > statistics.NO_VARIANCE * (head**2).sum()
    slopes = np.where(known, along / np.where(known, power, 1.0), 0.0)
    squares = (rest**2).sum(axis=0) - more * rest**2 - slopes * along
    below = np.empty_like(values)
    for row, slope in enumerate(slopes):
        gap = rest - rest[row] - (head - head[row]) * slope
        below[row] = (gap < 0).sum(axis=0) + ((gap == 0).sum(axis=0) - 1) / 2  # itself is no other
    return _placed(more * (rest - head * slopes), np.sqrt(np.maximum(squares, 0) / (n - 2)), values, below / (n - 1))


def _placed(deviation: Floats, sd: Floats, values: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Return z and percentile, NaN where nothing varies or a volume is not known."""
    z = deviation / np.where(sd**2 <= statistics.NO_VARIANCE * (values**2).mean(axis=0), np.nan, sd)
    return z, np.where(np.isnan(z), np.nan, 100 * share)


def _components(values: Floats, codes: np.ndarray) -> tuple[Floats, Floats]:
    """Return the SD within anatomies (pooled) and between their means, by column."""
    counts = np.bincount(codes).astype(float)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, codes, values)
    means = sums / counts[:, None]
    inside = ((values - means[codes]) ** 2).sum(axis=0) / (len(values) - len(counts))
    return np.sqrt(inside), means.std(axis=0, ddof=1)
