"""Segmentation quality control: SynthSeg's QC scores, a threshold from the real cohort, and the gate.

The rule is that of Wu et al., MICCAI 2024: one threshold for all eight scores, set so that 5 % of the real
volumes fail; a volume fails when any score is below it; a generator that fails more often is not assessed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from core.errors import InputError
from core.tables import check_numbers, read_cells, rename_aliases, write_rows

VERSION = 1
QC_SCORES = (
    "general white matter",
    "general grey matter",
    "general csf",
    "cerebellum",
    "brainstem",
    "thalamus",
    "putamen+pallidum",
    "hippocampus+amygdala",
)
# Other spellings of the scores, after case, "-" and "_" are ignored.
ALIASES = {
    "general gray matter": "general grey matter",
    "brain stem": "brainstem",
    "putamen + pallidum": "putamen+pallidum",
    "hippocampus + amygdala": "hippocampus+amygdala",
}
REAL = "real"


@dataclass(frozen=True)
class GateResult:
    """What the gate let through in one cohort.

    Parameters
    ----------
    n : int
        Volumes judged.
    failed_scores, failed_volumes : int
        Scores below the threshold; volumes with at least one such score.
    pass_rate, ci_low, ci_high : float
        Share of volumes that pass, and its 95 % Wilson interval.
    threshold : float
        Lowest score that passes.
    reliable : bool
        Whether the failure rate is at most that which the gate allows.
    """

    n: int
    failed_scores: int
    failed_volumes: int
    pass_rate: float
    ci_low: float
    ci_high: float
    threshold: float
    reliable: bool


def read_qc(path: Path | str) -> pd.DataFrame:
    """Read SynthSeg's QC CSV.

    Parameters
    ----------
    path : path
        Comma-separated; spaces around cells and an empty first header cell are accepted.

    Returns
    -------
    DataFrame
        Index ``subject`` (without image suffix), columns `QC_SCORES`: predicted Dice in [0, 1].

    Raises
    ------
    InputError
        With all problems found: missing file, empty table, missing or unknown columns, duplicate subjects,
        cells that are not scores.
    """
    return check_qc(read_cells(path), str(path))


def write_qc(qc: pd.DataFrame, path: Path | str) -> None:
    """Write a QC table as SynthSeg does: its header, four decimals, CRLF line ends."""
    write_rows(check_qc(qc, "scores to write"), path, lambda score: f"{score:.4f}")


def check_qc(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a copy of a QC table with index ``subject`` and the eight scores as floats.

    Parameters
    ----------
    table : DataFrame
        Subjects in the index or in a column ``subject``.
    where : str
        File or cohort named in the error.

    Raises
    ------
    InputError
        See `read_qc`.
    """
    if "subject" in table.columns:
        table = table.set_index("subject")
    table = rename_aliases(table, QC_SCORES, ALIASES)
    advice = "Give SynthSeg's QC CSV as it was written (mri_synthseg --qc)."
    return check_numbers(table, where, wanted=QC_SCORES, highest=1.0, meaning="a score in [0, 1]", advice=advice)


def threshold_from_real(qc: pd.DataFrame, fail_rate: float) -> float:
    """Return the largest threshold, one for all eight scores, at which at most ``fail_rate`` of the volumes fail.

    Parameters
    ----------
    qc : DataFrame
        QC table of the real cohort, at least 2 volumes. With fewer than 1 / fail_rate volumes none may fail, and
        the threshold is the lowest score of the cohort.
    fail_rate : float
        In [0, 1); the paper takes 0.05.

    Raises
    ------
    InputError
        Unusable table, a single volume, rate out of range.
    """
    if not 0 <= fail_rate < 1:
        raise InputError(f"failure rate {fail_rate} is not in [0, 1).", "qc_fail_rate", "The paper takes 0.05.")
    lowest = np.sort(check_qc(qc, "real QC scores").min(axis=1).to_numpy())
    if len(lowest) < 2:
        raise InputError("a threshold cannot be set from a single volume.", "real QC scores", "Add real volumes.")
    return float(lowest[_allowed(fail_rate, len(lowest))])


def gate(qc: pd.DataFrame, threshold: float, *, max_fail_rate: float) -> GateResult:
    """Count the volumes of a cohort that fail: any score below the threshold.

    Parameters
    ----------
    qc : DataFrame
        QC table of the cohort.
    threshold : float
        In [0, 1].
    max_fail_rate : float
        Failure rate above which the cohort is too unreliable for an anatomical assessment.

    Returns
    -------
    GateResult

    Raises
    ------
    InputError
        Unusable table, threshold out of range.
    """
    below = _below(qc, threshold)
    failed = int(below.any(axis=1).sum())
    n = len(below)
    low, high = pass_interval(n - failed, n)
    return GateResult(
        n=n,
        failed_scores=int(below.to_numpy().sum()),
        failed_volumes=failed,
        pass_rate=(n - failed) / n,
        ci_low=low,
        ci_high=high,
        threshold=float(threshold),
        reliable=failed <= _allowed(max_fail_rate, n),
    )


def failing_cases(qc: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """List the volumes that fail: ``subject``, ``failed`` (names of the scores), ``lowest`` score; worst first."""
    below = _below(qc, threshold)
    scores, marks = check_qc(qc, "QC scores").to_numpy(), below.to_numpy()
    failed = marks.any(axis=1)
    names = [", ".join(compress(QC_SCORES, row)) for row in marks[failed]]
    lowest = np.nanmin(scores[failed], axis=1)
    table = pd.DataFrame({"subject": below.index.to_numpy()[failed].tolist(), "failed": names, "lowest": lowest})
    return table.sort_values("lowest", kind="stable", ignore_index=True)


def briefly(failed: str) -> str:
    """Name failed scores, as `failing_cases` lists them, in a line of a page: many of them by those that pass."""
    names = failed.split(", ")
    passing = [name for name in QC_SCORES if name not in names]
    if not passing:
        return f"all {len(QC_SCORES)}"
    start, shown = ("all but ", passing) if len(passing) < len(names) else ("", names)
    return start + ", ".join(name.removeprefix("general ").replace("csf", "CSF") for name in shown)


def quality_table(
    real: pd.DataFrame, synthetic: dict[str, pd.DataFrame], *, fail_rate: float = 0.05, threshold: float | None = None
) -> pd.DataFrame:
    """Gate the real and every synthetic cohort with one threshold (the paper's Table 2).

    Parameters
    ----------
    real : DataFrame
        QC table of the real cohort.
    synthetic : dict of str to DataFrame
        QC tables by generator.
    fail_rate : float
        Failure rate that the gate allows; sets the threshold on the real cohort unless one is given.
    threshold : float, optional
        Fixed threshold, such as the paper's 0.65.

    Returns
    -------
    DataFrame
        First row the real cohort, named "real"; columns ``cohort`` and the fields of `GateResult`.

    Raises
    ------
    InputError
        See `threshold_from_real` and `gate`.
    """
    if REAL in synthetic:
        raise InputError(f"a synthetic cohort is called {REAL!r}.", "cohorts", "Give it another name.")
    tables = {REAL: check_qc(real, "real QC scores")}
    tables |= {name: check_qc(table, f"QC scores of {name}") for name, table in synthetic.items()}
    cut = threshold_from_real(tables[REAL], fail_rate) if threshold is None else threshold
    rows = [{"cohort": name, **asdict(gate(qc, cut, max_fail_rate=fail_rate))} for name, qc in tables.items()]
    return pd.DataFrame(rows)


def pass_interval(passed: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a pass rate."""
    interval = binomtest(passed, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _allowed(fail_rate: float, n: int) -> int:
    """Count the volumes that may fail; the small term keeps 0.05 * 20 at 1 in floating point."""
    return math.floor(fail_rate * n + 1e-9)


def _below(qc: pd.DataFrame, threshold: float) -> pd.DataFrame:
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold {threshold} is not in [0, 1].", "qc_threshold", "The paper takes 0.65.")
    return check_qc(qc, "QC scores") < threshold
