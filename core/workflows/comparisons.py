"""Scores laid beside each other: who is closest, whether the order is stable, the layout of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core import anatomy
from core.tables import csv_text
from core.workflows.ranking import badness_of, rank_table

REAL = "real"  # the row of floors in the layout of Table 1
PAPER_ENCODERS = {"r101": "medicalnet-r101", "r50_23": "medicalnet-r50-23", "r50": "medicalnet-r50"}
PAPER_N = 400  # volumes of each cohort in the paper
# Columns of the paper's Table 1 and the metric that fills them; the first two once for every encoder.
TABLE_ONE = {
    "FID": {"published": "fid", "corrected": "fid"},
    "MMD": {"published": "mmd", "corrected": "mmd2-rbf"},
    "Image MMD": {"published": "image-mmd", "corrected": "image-mmd"},
    "MS-SSIM": {"published": "ms-ssim", "corrected": "ms-ssim"},
}
PER_ENCODER = ("FID", "MMD")


@dataclass(frozen=True)
class Closest:
    """Who is first by one metric, encoder and variant.

    Parameters
    ----------
    cohorts : tuple of str
        No other cohort is better than these by a whole interval; several are tied. Empty when nothing is ranked.
    at_floor : tuple of str
        Those of them whose interval reaches the floor, or lies beyond it: this score cannot tell them from real ones.
    ranked : int
        Cohorts that have a place.
    unranked : tuple of (str, str)
        The other cohorts, and why they have none.
    """

    cohorts: tuple[str, ...]
    at_floor: tuple[str, ...]
    ranked: int
    unranked: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Agreement:
    """How far the encoders agree on the order of the cohorts.

    Parameters
    ----------
    places : DataFrame, cohort × encoder
        Places of `core.workflows.results.rank_scores`; NaN where a cohort has none.
    tau : DataFrame, encoder × encoder
        Kendall's τ; NaN where an encoder separates no two cohorts, or fewer than two are shared.
    reversals : tuple of (str, str, str, str)
        Encoder, encoder, cohort, cohort: the first encoder puts the first cohort before the second one, the second
        encoder behind it, each by a whole interval.
    """

    places: pd.DataFrame
    tau: pd.DataFrame
    reversals: tuple[tuple[str, str, str, str], ...]

    def tau_of(self, first: str, second: str) -> float:
        """Return τ between two encoders."""
        return float(self.tau.to_numpy()[self.tau.index.get_loc(first), self.tau.columns.get_loc(second)])

    def lowest(self) -> tuple[str, str, float] | None:
        """Return the two encoders that agree least and their τ; None when there is no pair with a τ."""
        found = [(str(a), str(b), self.tau_of(a, b)) for a, b in combinations(self.tau.index, 2)]
        known = [pair for pair in found if np.isfinite(pair[2])]
        return min(known, key=lambda pair: pair[2]) if known else None


def select(ranked: pd.DataFrame, metric: str, variant: str, encoder: str | None = None) -> pd.DataFrame:
    """Return the rows of one metric and variant; of one encoder, unless the metric has none."""
    rows = ranked[(ranked["metric"] == metric) & (ranked["variant"] == variant)]
    return rows if encoder is None else rows[rows["encoder"].isin([encoder, ""])]


def closest(scores: pd.DataFrame) -> Closest:
    """Say which cohort is closest to the real one.

    Parameters
    ----------
    scores : DataFrame
        Rows of `rank_scores` of one metric, encoder and variant.
    """
    placed = scores.dropna(subset=["rank"])
    first = placed[placed["rank"] == placed["rank"].min()]
    reached = tuple(str(row["cohort"]) for _, row in first.iterrows() if reaches_floor(row))
    without = scores[scores["rank"].isna()]
    reasons = tuple((str(row["cohort"]), str(row["note"])) for _, row in without.iterrows())
    return Closest(tuple(first["cohort"].astype(str)), reached, len(placed), reasons)


def rank_agreement(ranked: pd.DataFrame, metric: str, variant: str) -> Agreement:
    """Compare the order of the cohorts between encoders.

    Parameters
    ----------
    ranked : DataFrame
        Of `core.workflows.results.rank_scores`: unlike fingerprints have no place there, and are left out here.
    metric, variant : str
        One score; a metric of the volumes themselves has one order only.

    Returns
    -------
    Agreement

    Notes
    -----
    τ is Kendall's coefficient over pairs of cohorts, where overlapping intervals are a tie: Σ ab / √(Σ a² Σ b²) with
    a, b in {−1, 0, 1} for each pair. It equals τ-b where ties are transitive, which overlapping intervals need not be.

    References
    ----------
    Kendall, The treatment of ties in ranking problems, Biometrika (1945), doi:10.1093/biomet/33.3.239.
    """
    rows = select(ranked, metric, variant)
    encoders, cohorts = list(dict.fromkeys(rows["encoder"])), list(dict.fromkeys(rows["cohort"]))
    places = rows.pivot_table("rank", "cohort", "encoder", sort=False, dropna=False)
    places = places.reindex(index=cohorts, columns=encoders)
    signs = {encoder: _order_of_pairs(rows[rows["encoder"] == encoder], cohorts) for encoder in encoders}
    tau = pd.DataFrame(np.nan, index=encoders, columns=encoders)
    reversals: list[tuple[str, str, str, str]] = []
    for a, b in combinations(encoders, 2):
        tau.loc[a, b] = tau.loc[b, a] = kendall_tau(signs[a], signs[b])
        for i, j in zip(*np.nonzero(signs[a] * signs[b] == -1), strict=True):
            if signs[a][i, j] == -1:
                reversals.append((a, b, cohorts[i], cohorts[j]))
    for encoder in encoders:
        tau.loc[encoder, encoder] = kendall_tau(signs[encoder], signs[encoder])
    return Agreement(places, tau, tuple(reversals))


def kendall_tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Kendall's coefficient of two orders.

    Parameters
    ----------
    first, second : ndarray, shape (n, n)
        −1 where row precedes column, 1 where it follows, 0 for a tie, NaN for a pair that is not compared.

    Returns
    -------
    float
        In [−1, 1]; NaN when one order separates no pair.
    """
    upper = np.triu_indices(len(first), 1)
    a, b = first[upper], second[upper]
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale else float("nan")


def order_sentence(agreement: Agreement, encoders: Mapping[str, str], cohorts: Mapping[str, str]) -> str:
    """Say whether the order of the cohorts depends on the encoder.

    Parameters
    ----------
    agreement : Agreement
    encoders, cohorts : mapping of str to str
        Names to use.
    """
    names = list(agreement.tau.index)
    if len(names) < 2:
        return "Order under one encoder only: its stability cannot be judged."
    lowest = agreement.lowest()
    if lowest is None:
        return "Order undecided: τ is not defined, since no two cohorts are separated by more than one encoder."
    first, second, tau = lowest
    between = (
        f"τ = {tau:.2f}".replace("-", "−") + f" between {encoders.get(first, first)} and {encoders.get(second, second)}"
    )
    if len(names) > 2:
        between += ", the least agreement of all pairs"
    undefined = [encoders.get(name, name) for name in names if np.isnan(agreement.tau_of(name, name))]
    rest = f" {', '.join(undefined)} separates no two cohorts." if undefined else ""
    if agreement.reversals:
        a, b, near, far = min(agreement.reversals, key=lambda r: agreement.tau_of(r[0], r[1]))
        near, far = cohorts.get(near, near), cohorts.get(far, far)
        swap = f"{encoders.get(a, a)} puts {near} before {far}, {encoders.get(b, b)} behind it"
        return f"Order not stable: {between}. {swap}.{rest}"
    if tau < 1 - 1e-9:
        tied = "Some cohorts are separated by one encoder and tied by another; none are put in opposite order"
        return f"Order only partly confirmed: {between}. {tied} by more than their intervals.{rest}"
    return f"Order stable: every encoder separates the same cohorts in the same order (τ = 1).{rest}"


def table_one(
    ranked: pd.DataFrame,
    cohorts: Sequence[str],
    encoders: Sequence[str],
    variant: str,
    controls: Collection[str] = (),
) -> pd.DataFrame:
    """Arrange scores as in Table 1 of the paper, one row for each cell.

    Parameters
    ----------
    ranked : DataFrame
        Of `core.workflows.results.rank_scores`.
    cohorts : sequence of str
        The synthetic cohorts, in order.
    encoders : sequence of str
        Encoders of the study, in order; one without scores still has its columns.
    variant : {"corrected", "published"}
    controls : collection of str
        Cohorts that are no generator, and so never the best.

    Returns
    -------
    DataFrame
        ``cohort``, ``encoder`` ("" for scores of the volumes), ``column`` (as in `TABLE_ONE`), ``metric``, ``value``,
        ``ci_low``, ``ci_high``, ``floor``, ``direction``, ``n_real``, ``n_synthetic``, ``best``, ``tied`` (another
        cohort is best too), ``note``. Cells without a score are there, NaN. The row `REAL` holds the floors: ``value``
        where all cohorts share one, else their range in ``ci_low`` and ``ci_high``.
    """
    columns = [(name, encoder) for encoder in encoders for name in PER_ENCODER]
    columns += [(name, "") for name in TABLE_ONE if name not in PER_ENCODER]
    cells: list[dict[str, Any]] = []
    for name, encoder in columns:
        metric = TABLE_ONE[name][variant]
        scores = select(ranked, metric, variant)
        scores = scores[scores["encoder"] == encoder].drop_duplicates("cohort").set_index("cohort")
        ranks = scores.loc[~scores.index.isin(list(controls)), "rank"]
        best = set(ranks.index[ranks == ranks.min()])
        place = {"encoder": encoder, "column": name, "metric": metric}
        for cohort in cohorts:
            row = scores.loc[cohort] if cohort in scores.index else pd.Series({"note": "not computed"})
            kept = {key: row.get(key, np.nan) for key in ("value", "ci_low", "ci_high", "floor")}
            kept |= {key: row.get(key) for key in ("direction", "n_real", "n_synthetic", "note")}
            marks = {"best": cohort in best, "tied": cohort in best and len(best) > 1}
            cells.append({"cohort": cohort, **place, **kept, **marks})
        cells.append({"cohort": REAL, **place, **_floors(scores), "best": False, "tied": False, "note": ""})
    return pd.DataFrame(cells)


def table_one_csv(cells: pd.DataFrame) -> str:
    """Return the layout of Table 1 as CSV: a row for each cohort, value, interval and floor of each column."""
    titles = (cells["encoder"] + " " + cells["column"]).str.strip()
    parts = []
    for title in dict.fromkeys(titles):
        part = cells[titles == title].set_index("cohort")[["value", "ci_low", "ci_high", "floor"]]
        parts.append(part.add_prefix(f"{title} ").rename(columns={f"{title} value": title}))
    return csv_text(pd.concat(parts, axis=1).reset_index()) if parts else ""


def curve_points(details: Sequence[Mapping[str, Any]], metric: str, variant: str, encoder: str) -> pd.DataFrame:
    """Return the score against the number of volumes.

    Parameters
    ----------
    details : sequence of mapping
        `Results.details`.

    Returns
    -------
    DataFrame
        ``cohort``, ``n`` (volumes drawn of each cohort), ``value`` (mean over draws), ``ci_low``, ``ci_high``.
    """
    rows = [
        {"cohort": detail["cohort"], **point}
        for detail in details_of(details, metric, variant, encoder)
        for point in detail.get("curve") or ()
    ]
    return pd.DataFrame(rows, columns=["cohort", "n", "value", "ci_low", "ci_high"])


def details_of(
    details: Sequence[Mapping[str, Any]], metric: str, variant: str, encoder: str
) -> list[Mapping[str, Any]]:
    """Return what is recorded beside the scores of one metric, variant and encoder."""
    wanted = (metric, variant)
    chosen = [detail for detail in details if (detail["metric"], detail["variant"]) == wanted]
    return [detail for detail in chosen if (detail.get("encoder") or "") in (encoder, "")]


def paper_scores() -> pd.DataFrame:
    """Return Table 1 of the paper in the form of `rank_scores`.

    The paper prints no intervals: each is the printed value, so that equal numbers are ties and nothing else is.
    """
    table = anatomy.paper_table(1)
    real = table.set_index("model").loc["real MRIs", "ms_ssim"]
    rows = []
    for column in table.columns.drop("model"):
        encoder, _, metric = column.rpartition("_")
        encoder, metric = (encoder, metric) if encoder in PAPER_ENCODERS else ("", column.replace("_", "-"))
        similar = metric == "ms-ssim"
        kind: dict[str, Any] = {"metric": metric, "encoder": PAPER_ENCODERS.get(encoder, ""), "variant": "published"}
        kind |= {"floor": real if similar else np.nan, "direction": "match real" if similar else "lower"}
        models = table[table["model"] != "real MRIs"]
        rows += [
            {"cohort": model, "value": value, "ci_low": value, "ci_high": value, **kind}
            for model, value in zip(models["model"], models[column], strict=True)
        ]
    return rank_table(pd.DataFrame(rows).assign(n_real=PAPER_N, n_synthetic=PAPER_N, fingerprint="as printed"), {})


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of n independent volumes.

    References
    ----------
    Wilson, Probable inference, the law of succession, and statistical inference (1927),
    doi:10.1080/01621459.1927.10502953.
    """
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)


def _order_of_pairs(rows: pd.DataFrame, cohorts: Sequence[str]) -> NDArray[np.float64]:
    """−1 where the cohort of the row is better than that of the column by a whole interval; (n, n)."""
    bounds = np.full((len(cohorts), 2), np.nan)
    for _, row in rows.dropna(subset=["rank"]).iterrows():
        bounds[cohorts.index(row["cohort"])] = (np.inf, np.inf) if row["note"] else badness_of(row)  # noted: the last
    low, high = bounds[:, 0], bounds[:, 1]
    before = (high[:, None] < low[None, :]).astype(float)
    signs: NDArray[np.float64] = before.T - before
    missing = np.isnan(low)
    signs[missing] = signs[:, missing] = np.nan
    return signs


def reaches_floor(row: pd.Series) -> bool:
    """Tell whether a score cannot be told from that of real volumes: its interval reaches the floor."""
    floor = row["floor"]
    if not np.isfinite(floor):
        return False
    if row["direction"] == "match real":
        return bool(row["ci_low"] <= floor <= row["ci_high"])
    return bool(row["ci_high"] >= floor if row["direction"] == "higher" else row["ci_low"] <= floor)


def _floors(scores: pd.DataFrame) -> dict[str, Any]:
    """Return the cell of the real cohort: one floor, or the range of floors of cohorts that differ in size."""
    known = scores["floor"].dropna()
    low, high = (float(known.min()), float(known.max())) if len(known) else (np.nan, np.nan)
    one = low == high
    cell = {"value": low if one else np.nan, "ci_low": np.nan if one else low, "ci_high": np.nan if one else high}
    about = {name: scores[name].iloc[0] if len(scores) else None for name in ("direction", "n_real")}
    return {**cell, "floor": np.nan, **about, "n_synthetic": None}
