"""Regional volumes: label table, SynthSeg's CSV, TIV adjustment, effect sizes and their inference.

Effect sizes follow Wu et al., MICCAI 2024, "Evaluating the Quality of Brain MRI Generators"
(arXiv:2409.08463); spread ratio, intervals, tests and verdicts are added beside them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from core.errors import InputError
from core.tables import check_numbers, read_cells, write_rows

VERSION = 1
DATA = Path(__file__).resolve().parents[1] / "data"
TIV = "total intracranial"
FIRST_PARCEL = 1000  # ids from here on are Desikan-Killiany parcels, absent without --parc
MIN_CASES = 3
MIN_CASES_FOR_VERDICT = 10
EFFECT_COLUMNS = (
    "group",
    "region",
    "cohens_d",
    "ci_low",
    "ci_high",
    "spread_ratio",
    "p_value",
    "q_value",
    "verdict",
    "n_real",
    "n_synthetic",
)
_NO_VARIANCE = 1e-12  # of the raw variance; what floating point leaves of a volume that TIV explains fully

Floats = NDArray[np.float64]


def structures() -> pd.DataFrame:
    """Return the label table, in SynthSeg's file order (ascending id).

    Returns
    -------
    DataFrame
        ``id`` (FreeSurfer), ``name`` (SynthSeg's CSV column), ``side`` (left, right or ""), ``qc_group``
        ("" for csf, which SynthSeg's QC treats as background), ``region`` (name in the paper's Table 3, "" when
        not in it), ``kind`` (subcortical or cortical), ``r``, ``g``, ``b`` (FreeSurferColorLUT).
    """
    return _structures().copy()


def regions() -> pd.DataFrame:
    """Return the 49 regions of the paper's Table 3 in its order: columns ``group`` and ``region``."""
    return paper_table(3)[["group", "region"]]


def paper_table(number: int) -> pd.DataFrame:
    """Return Table 1, 2 or 3 of Wu et al. (MICCAI 2024) as printed.

    Raises
    ------
    InputError
        When there is no such table.
    """
    if number not in (1, 2, 3):
        raise InputError(f"the paper has no table {number}.", "paper_table", "Choose 1, 2 or 3.")
    return pd.read_csv(DATA / "paper" / f"table{number}.csv")


def volume_columns(parcels: bool) -> list[str]:
    """Return the volume columns of SynthSeg's CSV after ``subject``, in file order, with or without ``--parc``."""
    table = _structures()
    return [TIV, *table.loc[(table["id"] < FIRST_PARCEL) | parcels, "name"]]


def read_volumes(path: Path | str) -> pd.DataFrame:
    """Read SynthSeg's volume CSV.

    Parameters
    ----------
    path : path
        Comma-separated; spaces around cells and an empty first header cell are accepted.

    Returns
    -------
    DataFrame
        Index ``subject`` (without image suffix), columns ``volume_columns(parcels)`` in mm³.
        ``attrs["notes"]`` says when the cortical parcels are absent.

    Raises
    ------
    InputError
        With all problems found: missing file, empty table, missing or unknown columns, duplicate subjects,
        cells that are not volumes.
    """
    path = Path(path)
    return check_volumes(read_cells(path), str(path))


def write_volumes(volumes: pd.DataFrame, path: Path | str) -> None:
    """Write a volume table as SynthSeg does: its header, values rounded to 0.001 mm³, CRLF line ends."""
    write_rows(check_volumes(volumes, "volumes to write"), path, lambda volume: round(volume, 3))


def check_volumes(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a copy of a volume table with index ``subject`` and SynthSeg's columns as floats.

    Parameters
    ----------
    table : DataFrame
        Subjects in the index or in a column ``subject``.
    where : str
        File or cohort named in the error.

    Raises
    ------
    InputError
        See `read_volumes`.
    """
    parcels = any(str(column).startswith("ctx-") for column in table.columns)
    numbers = check_numbers(
        table,
        where,
        wanted=volume_columns(parcels),
        highest=np.inf,
        meaning="a volume in mm³ (a number ≥ 0)",
        advice="Give SynthSeg's CSV as it was written (mri_synthseg --vol); the columns are listed in docs/columns.md.",
    )
    numbers.attrs["notes"] = () if parcels else ("no cortical parcels (segmented without --parc)",)
    return numbers


def regional_volumes(volumes: pd.DataFrame) -> pd.DataFrame:
    """Average left and right into the 49 regions of the paper's Table 3.

    Parameters
    ----------
    volumes : DataFrame
        SynthSeg's volume table, see `read_volumes`.

    Returns
    -------
    DataFrame
        Subjects x (``total intracranial``, 49 regions) in mm³; cortical regions are NaN when the table has no
        parcels, and ``attrs["notes"]`` says so.
    """
    table = check_volumes(volumes, "volume table")
    names = _structures().query("region != ''").groupby("region", sort=False)["name"].apply(list)
    columns = {TIV: table[TIV]}
    for region in regions()["region"]:
        columns[region] = table.reindex(columns=names[region]).mean(axis=1, skipna=False)
    result = pd.DataFrame(columns)
    result.attrs["notes"] = table.attrs["notes"]
    return result


def adjust_for_tiv(values: Floats, tiv: Floats) -> Floats:
    """Remove the part of each volume that total intracranial volume explains, around the mean TIV.

    Parameters
    ----------
    values : ndarray, shape (n, regions)
        Volumes of all pooled subjects, mm³.
    tiv : ndarray, shape (n,)
        Total intracranial volumes, mm³.

    Returns
    -------
    ndarray, shape (n, regions)
        ``volume - slope * (TIV - mean TIV)``, slope by ordinary least squares with intercept (Wu et al., 2024).
    """
    centred = tiv - tiv.mean()
    power = float(centred @ centred)
    slopes = centred @ (values - values.mean(axis=0)) / power if power > 0 else np.zeros(values.shape[1])
    return values - centred[:, None] * slopes


def effect_sizes(
    real: pd.DataFrame, synthetic: pd.DataFrame, *, seed: int = 0, n_boot: int = 1000, margin: float = 0.2
) -> pd.DataFrame:
    """Compare regional volumes of a synthetic cohort with the real one; |d| near 0 is better.

    Parameters
    ----------
    real, synthetic : DataFrame
        SynthSeg's volume tables, see `read_volumes`; at least 3 subjects each.
    seed : int
        Of the bootstrap. The real cohort is drawn alike for every generator.
    n_boot : int
        Resamples of subjects; the TIV regression is redone in each.
    margin : float
        Largest |d| that still counts as equivalent.

    Returns
    -------
    DataFrame
        One row for each region of Table 3, columns `EFFECT_COLUMNS`. ``cohens_d`` as published: TIV adjustment over
        the pooled rows, then (mean real - mean synthetic) / sqrt((var real + var synthetic) / 2), ddof = 0; positive
        means that the synthetic region is too small. ``ci_low``, ``ci_high``: 95 % percentile bootstrap.
        ``spread_ratio``: log(SD synthetic / SD real) after adjustment, 0 is best, below 0 too little variety.
        ``p_value``: Welch's t; ``q_value``: Benjamini-Hochberg over the regions. ``verdict``: *equivalent* when the
        90 % interval lies inside ±margin (two one-sided tests at 5 %), else *different* when q < 0.05, else
        *undetermined*. Regions without volumes or without variance, and cohorts of fewer than
        10 subjects, are *undetermined*; ``attrs["notes"]`` says why.

    Raises
    ------
    InputError
        Unusable tables, fewer than 3 subjects, margin or resample count out of range.

    References
    ----------
    Wu et al., MICCAI 2024. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), doi:10.1007/BF01068419.
    """
    if not margin > 0 or n_boot < 100:
        raise InputError(f"margin {margin} or n_boot {n_boot} is too small.", "effect_sizes", "Use > 0 and ≥ 100.")
    tables = [_cohort(real, "real volumes"), _cohort(synthetic, "synthetic volumes")]
    counts = [len(table) for table in tables]
    pooled = np.concatenate([table.to_numpy() for table in tables])
    tiv, values = pooled[:, 0], pooled[:, 1:]
    adjusted = adjust_for_tiv(values, tiv)
    first, second = np.split(adjusted, [counts[0]])
    flat = ~(first.var(axis=0) + second.var(axis=0) > _NO_VARIANCE * (values**2).mean(axis=0))
    adjusted[:, flat] = np.nan  # also in `first` and `second`, which are views
    draws = _bootstrap_d(first, second, np.split(tiv, [counts[0]]), n_boot, seed)
    low, lower, upper, high = _quantiles(draws, [0.025, 0.05, 0.95, 0.975])
    p = _welch(first, second)
    q = np.full_like(p, np.nan)
    q[np.isfinite(p)] = stats.false_discovery_control(p[np.isfinite(p)])
    floor = np.sqrt(_NO_VARIANCE * (values**2).mean(axis=0))
    with np.errstate(divide="ignore"):
        spread = np.log(_spread(second, floor)) - np.log(_spread(first, floor))
    equivalent = (lower > -margin) & (upper < margin)
    verdict = np.where(equivalent, "equivalent", np.where(q < 0.05, "different", "undetermined"))
    if min(counts) < MIN_CASES_FOR_VERDICT:
        verdict[:] = "undetermined"
    result = regions().assign(
        cohens_d=cohens_d(first, second), ci_low=low, ci_high=high, spread_ratio=spread, p_value=p, q_value=q
    )
    result = result.assign(verdict=verdict, n_real=counts[0], n_synthetic=counts[1])[list(EFFECT_COLUMNS)]
    result.attrs["notes"] = _notes(tables, counts, regions()["region"][flat & np.isfinite(values).all(axis=0)].tolist())
    return result


def cohens_d(real: Floats, synthetic: Floats) -> Floats:
    """Return (mean real - mean synthetic) / sqrt((var real + var synthetic) / 2) by column, ddof = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = real.mean(axis=0) - synthetic.mean(axis=0)
        return np.asarray(gap / np.sqrt((real.var(axis=0) + synthetic.var(axis=0)) / 2))


@lru_cache(maxsize=1)
def _structures() -> pd.DataFrame:
    return pd.read_csv(DATA / "label_table.csv", keep_default_na=False)


def _cohort(volumes: pd.DataFrame, where: str) -> pd.DataFrame:
    if len(volumes) < MIN_CASES:
        what = f"{len(volumes)} subject(s); effect sizes need at least {MIN_CASES} in each cohort."
        raise InputError(what, where, "Add volumes to the cohort.")
    return regional_volumes(check_volumes(volumes, where))


def _bootstrap_d(first: Floats, second: Floats, tiv: list[Floats], n_boot: int, seed: int) -> Floats:
    """Cohen's d in each resample, shape (n_boot, regions), the TIV slope refitted in each.

    Counts of a resample are weights, so every moment that d needs is one matrix product. Starting from values
    already adjusted changes nothing (adding a multiple of TIV leaves residuals as they are) and keeps the sums small.
    """
    centre = np.concatenate([first, second]).mean(axis=0)
    scale = np.concatenate([first, second]).std(axis=0)
    middle = np.concatenate(tiv).mean()
    unit = np.concatenate(tiv).std() or 1.0
    moments = []
    for stream, (values, size) in enumerate(zip((first, second), tiv, strict=True)):
        n = len(values)
        draw = np.random.default_rng([seed, stream]).multinomial(n, np.full(n, 1 / n), size=n_boot) / n
        v, t = (values - centre) / scale, (size - middle) / unit
        moments.append((n, draw @ v, draw @ v**2, draw @ (v * t[:, None]), draw @ t[:, None], draw @ (t**2)[:, None]))
    total = sum(m[0] for m in moments)
    mean_v, _, mean_vt, mean_t, mean_tt = (sum(m[0] * m[i] for m in moments) / total for i in range(1, 6))
    with np.errstate(divide="ignore", invalid="ignore"):
        power = mean_tt - mean_t**2
        slope = np.where(power > _NO_VARIANCE, (mean_vt - mean_v * mean_t) / power, 0.0)
        means = [v - slope * t for _, v, _, _, t, _ in moments]
        variances = [(vv - v**2) - 2 * slope * (vt - v * t) + slope**2 * (tt - t**2) for _, v, vv, vt, t, tt in moments]
        spread = (variances[0] + variances[1]) / 2
        return np.asarray((means[0] - means[1]) / np.sqrt(np.where(spread > _NO_VARIANCE, spread, np.nan)))


def _quantiles(draws: Floats, levels: list[float]) -> Floats:
    """Quantiles by column; columns or resamples without a value give or are left out as NaN."""
    result = np.full((len(levels), draws.shape[1]), np.nan)
    usable = np.isfinite(draws).any(axis=0)
    if usable.any():
        result[:, usable] = np.nanquantile(draws[:, usable], levels, axis=0)
    return result


def _spread(values: Floats, floor: Floats) -> Floats:
    """Return the standard deviation by column, exactly 0 where only rounding is left."""
    deviation = values.std(axis=0)
    return np.where(deviation <= floor, 0.0, deviation)


def _welch(first: Floats, second: Floats) -> Floats:
    moments = [(v.mean(axis=0), v.std(axis=0, ddof=1), len(v)) for v in (first, second)]
    with np.errstate(divide="ignore", invalid="ignore"):
        test = stats.ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False)
    return np.asarray(test.pvalue, dtype=np.float64)


def _notes(tables: list[pd.DataFrame], counts: list[int], constant: list[str]) -> tuple[str, ...]:
    notes = [
        f"{name} cohort: {note}"
        for name, table in zip(("real", "synthetic"), tables, strict=True)
        for note in table.attrs["notes"]
    ]
    if constant:
        notes.append(f"no variance left after TIV adjustment: {', '.join(constant)}")
    if min(counts) < MIN_CASES_FOR_VERDICT:
        notes.append(f"fewer than {MIN_CASES_FOR_VERDICT} subjects in a cohort: no verdict is given")
    return tuple(notes)
