"""Reading sessions meet the study: blinded volumes for the reader, and what the ratings say."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core import agreement, readings
from core.readings import SCALES
from core.settings import Settings
from core.study import Study
from core.volume import Grid, Volume, template
from core.workflows.ranking import badness_of
from core.workflows.results import Results, load_case

MARGIN = 8.0  # mm around the atlas brain
BRIGHTEST = 99.5  # percentile of the foreground shown white
FOREGROUND = -0.9  # above it a voxel counts for the window
ALL_READERS = "All readers"


def blinded_volumes(settings: Settings, study: Study, session: readings.Session, position: int) -> list[dict[str, Any]]:
    """Return what is shown at a position: one volume, or left and right; nothing in it tells the source.

    All volumes share grid, crop box, window rule and axis order. ``data`` is base64 of uint8 in C order of ``shape``
    (x, y, z); ``origin`` and ``spacing`` in mm.

    Raises
    ------
    InputError
        A case that was deleted or cannot be read.
    """
    item = session.plan[position]
    sources = [(item.cohort, item.case)]
    if session.mode == "forced choice":
        real = (study.real.name, item.real_case)
        sources = [real, *sources] if item.real_side == "left" else [*sources, real]
    return [_blinded(load_case(settings, study, *source), study.grid) for source in sources]


def _blinded(volume: Volume, grid: Grid) -> dict[str, Any]:
    box = reading_box(grid)
    shades = window(volume.data)[tuple(slice(low, high) for low, high in box)]
    origin = [grid.origin[axis] + box[axis][0] * grid.spacing for axis in range(3)]
    text = base64.b64encode(np.ascontiguousarray(shades).tobytes()).decode()
    return {"data": text, "shape": list(shades.shape), "spacing": grid.spacing, "origin": origin}


def window(data: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map [-1, 1] to grey values by one rule for every cohort: −1 is black, the brightest foreground white."""
    foreground = data[data > FOREGROUND]
    white = float(np.percentile(foreground, BRIGHTEST)) if foreground.size else 1.0
    return np.asarray(np.clip((data + 1) / max(white + 1, 1e-6) * 255, 0, 255).astype(np.uint8))


@lru_cache(maxsize=4)
def reading_box(grid: Grid) -> tuple[tuple[int, int], ...]:
    """Return the first and last-plus-one voxel on each axis: the atlas brain and a margin, the same for all volumes."""
    inside = np.argwhere(template(grid).data > -1)
    pad = round(MARGIN / grid.spacing)
    low, high = np.maximum(inside.min(axis=0) - pad, 0), np.minimum(inside.max(axis=0) + 1 + pad, grid.shape)
    return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))


# -- what the ratings say ----------------------------------------------------------------------------------------------


def reader_summary(ratings: pd.DataFrame, real: str) -> pd.DataFrame:
    """Return accuracy, d′ and agreement with oneself of each reader, then of all together.

    Hidden repeats count for the agreement alone. The interval over all readers takes answers to one case as a cluster.

    Returns
    -------
    DataFrame
        ``reader``, ``n``, ``accuracy``, ``ci_low``, ``ci_high``, ``d_prime``, ``d_low``, ``d_high``, ``repeats``,
        ``kappa_answer`` (Cohen's κ), ``kappa_realism`` (quadratic weights), ``seconds`` (median a case).
    """
    groups = list(ratings.groupby("reader", sort=True))
    if len(groups) > 1:
        groups.append((ALL_READERS, ratings))
    return pd.DataFrame([_reader_row(str(name), table, real) for name, table in groups])


def _reader_row(name: str, table: pd.DataFrame, real: str) -> dict[str, Any]:
    first = first_answers(table)
    right = first["correct"].astype(bool)
    clusters = list(zip(first["cohort"], first["case"], strict=True))
    accuracy = agreement.wilson(right, clusters if name == ALL_READERS else None)
    if (first["mode"] == "forced choice").all() and len(first):
        d = agreement.d_prime_forced_choice(accuracy)
    else:
        is_real, said = first["cohort"] == real, first["answer"] == "synthetic"
        d = agreement.d_prime(
            int((said & ~is_real).sum()), int((~is_real).sum()), int((said & is_real).sum()), int(is_real.sum())
        )
    pairs = repeat_pairs(table)
    row: dict[str, Any] = {"reader": name, "n": accuracy.n, "accuracy": accuracy.value}
    row |= {"ci_low": accuracy.ci_low, "ci_high": accuracy.ci_high}
    row |= {"d_prime": d.value, "d_low": d.ci_low, "d_high": d.ci_high, "repeats": len(pairs)}
    # In forced choice the sides change, so what must agree is being right.
    answer = ("correct", "correct_again") if (table["mode"] == "forced choice").all() else ("answer", "answer_again")
    row["kappa_answer"] = agreement.cohen_kappa(*(pairs[column].tolist() for column in answer))
    rated = pairs.dropna(subset=["realism", "realism_again"])
    row["kappa_realism"] = agreement.cohen_kappa(
        rated["realism"].tolist(), rated["realism_again"].tolist(), weights="quadratic"
    )
    return row | {"seconds": float(table["seconds"].median())}


def first_answers(ratings: pd.DataFrame) -> pd.DataFrame:
    """Leave out hidden repeats and skipped cases."""
    return ratings[(ratings["repeat_of"] < 0) & (ratings["answer"] != "skipped")]


def repeat_pairs(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return first and second answers to the same case side by side, the second ones named ``…_again``."""
    first = first_answers(ratings)
    second = ratings[(ratings["repeat_of"] >= 0) & (ratings["answer"] != "skipped")]
    pairs = second.merge(
        first, left_on=["session", "repeat_of"], right_on=["session", "position"], suffixes=("_again", "")
    )
    return pairs


def reader_agreement(ratings: pd.DataFrame) -> pd.DataFrame:
    """Return Krippendorff's α between readers: ``what``, ``alpha``, ``readers``, ``cases`` (rated by two or more)."""
    first = first_answers(ratings)
    rows = []
    for name, level in (("answer", "nominal"), *((scale, "ordinal") for scale in SCALES)):
        values = first.assign(value=pd.factorize(first["answer"])[0] if name == "answer" else first[name])
        if name == "answer" and (first["mode"] == "forced choice").all():
            values["value"] = first["correct"].astype(float)
        table = values.dropna(subset=["value"]).pivot_table("value", "reader", ["cohort", "case"], aggfunc="first")
        shared = int((table.notna().sum(axis=0) >= 2).sum()) if len(table) else 0
        alpha = agreement.krippendorff_alpha(table.to_numpy(dtype=float), level) if shared else np.nan
        rows.append({"what": name, "alpha": alpha, "readers": len(table), "cases": shared})
    return pd.DataFrame(rows)


def confusion(ratings: pd.DataFrame, cohorts: Sequence[str]) -> pd.DataFrame:
    """Return for each cohort how often it was called what, first showings: ``n``, ``right``, ``accuracy`` and interval.

    In forced choice, ``right`` is how often the real volume beside the cohort's was found.
    """
    first = first_answers(ratings)
    skipped = ratings[(ratings["answer"] == "skipped") & (ratings["repeat_of"] < 0)]
    rows = []
    for name in cohorts:
        group = first[first["cohort"] == name]
        share = agreement.wilson(group["correct"].astype(bool), group["case"].tolist())
        row: dict[str, Any] = {"cohort": name, "n": share.n, "called_real": int((group["answer"] == "real").sum())}
        row |= {"called_synthetic": int((group["answer"] == "synthetic").sum())}
        row |= {"right": int(group["correct"].astype(bool).sum()), "accuracy": share.value}
        row |= {"ci_low": share.ci_low, "ci_high": share.ci_high, "skipped": int((skipped["cohort"] == name).sum())}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table[table["n"] + table["skipped"] > 0].reset_index(drop=True)


def likert_shares(ratings: pd.DataFrame, cohorts: Sequence[str]) -> pd.DataFrame:
    """Return how often each value was given: ``cohort``, ``scale``, ``value``, ``count``, ``share``, ``mean``."""
    first, rows = first_answers(ratings), []
    for name in cohorts:
        for scale in SCALES:
            given = first.loc[first["cohort"] == name, scale].dropna()
            for value in range(1, 6) if len(given) else ():
                count = int((given == value).sum())
                row = {"cohort": name, "scale": scale, "value": value, "count": count}
                rows.append(row | {"share": count / len(given), "mean": float(given.mean())})
    return pd.DataFrame(rows, columns=["cohort", "scale", "value", "count", "share", "mean"])


def correlate_with_metrics(ratings: pd.DataFrame, results: Results, real: str, seed: int) -> pd.DataFrame:
    """Correlate the order of the cohorts by readers with their order by every score.

    Readers' order is mean realism; without Likert ratings, the share of wrong answers. Scores are turned so that
    higher is better, so that ρ = 1 is full agreement.

    Returns
    -------
    DataFrame
        ``metric``, ``encoder``, ``variant``, ``rho`` (Spearman), ``p_value`` (permutation), ``tau`` (Kendall),
        ``cohorts``; strongest first.
    """
    first = first_answers(ratings)
    fakes = first[first["cohort"] != real]
    if fakes["realism"].notna().any():
        mean = fakes.groupby("cohort")["realism"].mean()
    else:
        mean = 1 - fakes.assign(right=fakes["correct"].astype(float)).groupby("cohort")["right"].mean()
    rows = []
    for (metric, encoder, variant), group in results.metrics.groupby(["metric", "encoder", "variant"], sort=False):
        scored = group[group["cohort"].isin(mean.index)].dropna(subset=["value"])
        scored = scored[(scored["direction"] != "match real") | scored["floor"].notna()]
        points = scored.assign(ci_low=scored["value"], ci_high=scored["value"])
        good = [-sum(badness_of(row)) / 2 for _, row in points.iterrows()]
        values = agreement.rank_correlation(mean.reindex(scored["cohort"]).to_numpy(), good, seed=seed)
        names = ("rho", "p_value", "tau", "cohorts")
        row = {"metric": metric, "encoder": encoder, "variant": variant, **dict(zip(names, values, strict=True))}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["metric", "encoder", "variant", "rho", "p_value", "tau", "cohorts"])
    return table.sort_values("rho", key=lambda c: -c.abs(), kind="stable", ignore_index=True)
