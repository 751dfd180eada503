"""Parts of the pages Similarity and Paper: the answer, order of the cohorts, curve, map, all scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from core import plots
from core.encoders import ENCODERS
from core.metrics import METRICS
from core.study import Study
from core.tables import csv_text
from core.workflows import Results
from core.workflows import comparisons as compare
from pages import access, look, reads, selection, shared

Source = tuple[str, reads.Stamp]  # study.toml and its results

TAB = "similarity_tab"  # key of the tabs, for who leads to one
TABS = "similarity_tabs"  # key of what holds them
COPY_TAB = "Copy check"
SPACE = "similarity_space_"  # begins the key of its choice
VARIANTS = {"corrected": "Corrected", "published": "As published"}
SHORT_ENCODERS = {
    "medicalnet-r101": "R101",
    "medicalnet-r50-23": "R50-23",
    "medicalnet-r50": "R50",
    "random-r50": "untrained R50",
}
LOG_FROM = 10  # times the smallest value: from there on a logarithmic axis is offered
LOG_HELP = "Tells cohorts near the floor apart when another one is far off."
MAP_NAMES = {"pca": "PCA", "umap": "UMAP"}
SCORE_COLUMNS = {
    "metric": look.text("Metric", width=185),
    "encoder": look.text("Encoder", "The network that turns a volume into features; none for image metrics.", 95),
    "place": look.text(
        "Place",
        "1 is best. Cohorts whose intervals overlap are tied. Last: the cohort lacks volumes that failed the "
        "image checks, so its score flatters, and it comes behind all others.",
        70,
    ),
    "cohort": look.text("Cohort", width=230),
    "value": st.column_config.NumberColumn("Value", format="%.4g", width=85),
    "interval": look.text("95 % interval", "Interval of the value.", 140),
    "floor": st.column_config.NumberColumn("Floor", help=look.FLOOR_HELP, format="%.4g", width=85),
    "p": look.number("p", "Permutation test, where the metric has one.", "%.2g"),
    "n": look.text("N real / synthetic", "Volumes used of each cohort."),
    "good": look.text("Good is"),
    "unit": look.text("Unit"),
    "fingerprint": look.text(
        "Fingerprint", "Hash of everything the number was made from. Only scores with the same one are ranked together."
    ),
}


@dataclass(frozen=True)
class Focus:
    """The one score the page is about.

    Parameters
    ----------
    metric, variant : str
        As in metrics.csv.
    encoder : str
        As chosen; it does not matter to a metric of the volumes themselves.
    source : tuple
        The study and its results: figures are kept for these.
    """

    metric: str
    variant: str
    encoder: str
    source: Source

    @property
    def key(self) -> str:
        """Key in `METRICS`."""
        return self.metric if self.variant == "corrected" else f"{self.metric}/{self.variant}"

    @property
    def label(self) -> str:
        """Name of the metric on screen."""
        return metric_label(self.key)


@st.cache_resource(max_entries=64, show_spinner=False)
def cached_agreement(path: str, stamp: reads.Stamp, metric: str, variant: str) -> compare.Agreement:
    """Return how far the encoders agree on the order by one score."""
    return compare.rank_agreement(reads.cached_ranks(path, stamp), metric, variant)


def metric_label(key: str) -> str:
    """Return a metric's name without its variant."""
    return METRICS[key].label.removesuffix(", as published") if key in METRICS else key


def encoder_label(name: str) -> str:
    """Return a short name of an encoder: the paper's where it has one."""
    return SHORT_ENCODERS.get(name, name)


# -- the answer --------------------------------------------------------------------------------------------------------


def answer(scores: pd.DataFrame, focus: Focus, names: Mapping[str, str], controls: Collection[str] = ()) -> str:
    """Say in one line which generator is closest by the chosen score, and which controls it does not see."""
    known = scores[~scores["cohort"].isin(list(controls))]
    unseen = compare.closest(scores).at_floor if len(known) < len(scores) else ()
    scores = known if len(known) else scores
    found = compare.closest(scores)
    under = f", {encoder_label(focus.encoder)}" if scores["encoder"].any() else ""
    by = f"by **{focus.label}** ({VARIANTS[focus.variant].lower()}{under})"
    first = [f"**{names.get(name, name)}**" for name in found.cohorts]
    values = scores.set_index("cohort")
    if not first:
        return f"No cohort can be placed {by}: {'; '.join(sorted({why for _, why in found.unranked})) or 'no score'}."
    if len(first) == found.ranked and found.ranked > 1:
        start = f"No cohort is closest {by}: {'both' if found.ranked == 2 else f'all {found.ranked}'} are tied."
    elif len(first) > 1:
        start = f"Closest to the real cohort {by}: {', '.join(first[:-1])} and {first[-1]}, **tied**."
    elif found.ranked == 1:
        start = f"Only {first[0]} can be placed {by}: {with_interval(values.loc[found.cohorts[0]])}."
    else:
        start = f"Closest to the real cohort {by}: {first[0]}, {with_interval(values.loc[found.cohorts[0]])}."
    if found.at_floor:
        who = " and ".join(names.get(name, name) for name in found.at_floor)
        start += f" {who}: the interval reaches the floor, so this score cannot tell such volumes from real ones."
    if blind := [names.get(name, name) for name in unseen if name in controls and name not in found.at_floor]:
        start += f" It cannot tell {' and '.join(blind)} from real ones either, whose defect is known."
    for _, row in scores[scores["rank"].notna() & (scores["note"] != "")].iterrows():
        start += f" {names.get(row['cohort'], row['cohort'])} is {row['note']}."
    missing = [f"{names.get(name, name)} ({why})" for name, why in found.unranked]
    return start + (f" Without a place: {'; '.join(missing)}." if missing else "")


def with_interval(row: pd.Series) -> str:
    """Return a score with its interval and floor."""
    text = look.brief(row["value"])
    if pd.notna(row["ci_low"]) and row["ci_low"] < row["ci_high"]:
        text += f" [{look.brief(row['ci_low'])} – {look.brief(row['ci_high'])}]"
    return text + (f", floor {look.brief(row['floor'])}" if pd.notna(row["floor"]) else "")


def describe(key: str, scores: pd.DataFrame) -> str:
    """Say what a metric means: one sentence, direction, unit, N, source."""
    if key not in METRICS:
        return ""
    metric = METRICS[key]
    return (
        f"{metric.meaning} {look.GOOD_END[metric.direction].capitalize()}. Unit: {metric.unit or 'none'}. "
        f"N: {sizes(scores)}. {metric.reference}."
    )


def sizes(scores: pd.DataFrame) -> str:
    """Return the numbers of volumes that were compared."""
    pairs = zip(scores["n_real"], scores["n_synthetic"], strict=True)
    return ", ".join(sorted({f"{real:.0f} real / {synthetic:.0f} synthetic" for real, synthetic in pairs}))


# -- order of the cohorts ----------------------------------------------------------------------------------------------


def show_order(
    agreement: compare.Agreement,
    scores: pd.DataFrame,
    names: Mapping[str, str],
    colours: Mapping[str, str],
    focus: Focus,
) -> None:
    """Show the places of the cohorts under each encoder, and Kendall's τ between encoders."""
    if not scores["encoder"].any():
        st.info("This score compares the volumes themselves: no encoder, so one order only.")
        return
    label = {name: look.wrapped(names.get(name, name), 20) for name in agreement.places.index}

    def bump() -> Any:
        return plots.rank_bump(
            agreement.places.rename(index=label),
            scores.assign(cohort=scores["cohort"].map(label)),
            names={name: encoder_label(name) for name in agreement.places},
            colours=colours | {label[name]: colours[names.get(name, name)] for name in label},
        )

    left, right = st.columns([3, 2])
    with left:
        alt = "Place of each cohort under each encoder; lines that cross change places"
        look.show_kept("bump", (replace(focus, encoder=""), *label.values()), bump, alt=alt)
        st.caption(
            "Number: place, 1 is closest. One frame: one place, in the order of the scores. An interval that overlaps "
            "with that of another place is called a tie in tables. Hover: value and 95 % interval."
        )
    with right:
        st.markdown("**Kendall's τ between encoders**")
        tau = agreement.tau.rename(index=encoder_label, columns=encoder_label)
        shown = tau.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}")
        st.table(shown, alt="Kendall's tau of each two encoders")
        st.caption("1: same order. −1: reversed. Overlapping intervals are ties. –: no two cohorts are separated.")


# -- curve and map -----------------------------------------------------------------------------------------------------


def choose_log(scores: pd.DataFrame) -> bool:
    """Let the user choose a logarithmic axis, where one cohort is so far off that the others lie on one point."""
    known = scores[["value", "floor"]].to_numpy(dtype=float)
    known = known[np.isfinite(known)]  # the end of an interval may be 0: its bar then leads off the axis
    wide = len(known) > 0 and known.min() > 0 and known.max() > LOG_FROM * known.min()
    return wide and st.toggle("Logarithmic axis", key="similarity_log", help=LOG_HELP)


def show_curve(results: Results, scores: pd.DataFrame, focus: Focus, study: Study, *, log: bool) -> None:
    """Show the score against the number of volumes, with its warnings."""
    details = compare.details_of(results.details, focus.metric, focus.variant, focus.encoder)
    names = look.labels_of(study.cohorts)
    unit = METRICS[focus.key].unit if focus.key in METRICS else ""
    width = ENCODERS[focus.encoder].width if focus.encoder in ENCODERS and scores["encoder"].any() else None

    def find_points() -> pd.DataFrame:
        return compare.curve_points(results.details, focus.metric, focus.variant, focus.encoder)

    points = reads.kept("curve points", (focus,), find_points)

    def curve() -> Any:
        return plots.score_curve(
            points.assign(cohort=points["cohort"].map(names).fillna(points["cohort"])),
            scores.set_index("cohort")["floor"],
            title=f"{focus.label}{f' ({unit})' if unit else ''}",
            width=width,
            colours=look.colours_of(study),
            log=log,
        ).update_layout(showlegend=False)

    alt = f"{focus.label} of each cohort against the number of volumes"
    look.show_kept("curve", (*reads.basis(study), focus, log), curve, alt=alt)
    if len(points):
        st.caption(
            "Mean over random subsets of N volumes, colours as beside; bars: their spread. Dotted: floor at full N."
        )
    warnings = list(dict.fromkeys(text for detail in details for text in detail.get("warnings") or ()))
    for text in warnings:
        st.warning(f"{text[:1].upper()}{text[1:]}.", icon=":material/warning:")


def show_map(results: Results, study: Study, focus: Focus) -> None:
    """Show all volumes on one map; selecting points selects their cases."""
    encoder = focus.encoder
    known = results.map[results.map["encoder"] == encoder]
    if known.empty:
        shared.still_computing(f"The map under {encoder_label(encoder)}")
        return
    methods = list(dict.fromkeys(known["method"]))
    method = methods[0]
    if len(methods) > 1:
        method = st.segmented_control("Map", methods, default=method, required=True, key="similarity_map",
                                      format_func=lambda name: MAP_NAMES.get(name, name))  # fmt: skip
    names = look.labels_of(study.cohorts)

    def draw(keep: Collection[selection.Pair]) -> Any:
        points = known[known["method"] == method]
        points = points.assign(cohort=points["cohort"].map(names).fillna(points["cohort"]))
        return plots.joint_map(points, colours=look.colours_of(study), keep=keep)

    alt = f"{MAP_NAMES.get(str(method), str(method))} map of the features of all cohorts under {encoder_label(encoder)}"
    selection.show_chart(study, draw, f"map_{method}", (*reads.basis(study), encoder), alt=alt)
    st.caption(
        f"Each point is one volume; all cohorts are fitted together. {selection.HOW} "
        + ("Distances on a UMAP between far groups mean little." if method == "umap" else "")
    )


# -- all scores --------------------------------------------------------------------------------------------------------


def show_all(study: Study, results: Results, ranked: pd.DataFrame) -> None:
    """Show every score: dots, and a table with everything a number was made from."""
    names = look.labels_of(study.cohorts)
    shown = ranked.assign(cohort=ranked["cohort"].map(names).fillna(ranked["cohort"]))
    variants = st.segmented_control(
        "Variants", list(VARIANTS), default=list(VARIANTS), selection_mode="multi",
        format_func=VARIANTS.__getitem__, key="all_variants",
    )  # fmt: skip
    shown = shown[shown["variant"].isin(variants)]
    encoder = shown["encoder"].map(encoder_label, na_action="ignore")
    dots = shown.assign(cohort=shown["cohort"].map(look.wrapped), encoder=encoder).dropna(subset=["value"])
    draw = partial(plots.metric_dots, dots, colours=look.colours_of(study))
    look.show_kept("dots", (*reads.basis(study), *variants), draw, alt="Every score of every cohort")
    st.caption(
        "Filled: corrected. Open: as published. Bars: 95 % interval. Vertical tick: floor, real against real at the "
        "same N. A bar that reaches the floor cannot be told from a perfect generator *by this score*; one beyond it "
        "shows what the score does not see (blur lies below the floor of image-mmd)."
    )
    table = readable(shown, results, {label: name for name, label in names.items()})
    for variant, part in table.groupby("variant", sort=False):
        st.markdown(f"**{VARIANTS[str(variant)]}**")
        look.show_table(part[list(SCORE_COLUMNS)], SCORE_COLUMNS, height="content")
    unranked = table[table["rank"].isna()].drop_duplicates(["cohort", "note"])
    if len(unranked):
        lines = [f"- {row['cohort']}, {row['metric']}: {row['note']}" for _, row in unranked.iterrows()]
        st.warning("Some scores have no place:\n" + "\n".join(lines))
    access.download("Download all scores", lambda: csv_text(shown), "metrics.csv", "text/csv")


def readable(shown: pd.DataFrame, results: Results, cohort_of: dict[str, str]) -> pd.DataFrame:
    """Return the scores in words: labels, places, intervals, units; in the order of the registry."""
    keys = [m if v == "corrected" else f"{m}/{v}" for m, v in zip(shown["metric"], shown["variant"], strict=True)]
    known = list(METRICS)
    place = shown["rank"].map(lambda rank: "" if pd.isna(rank) else f"{rank:.0f}")
    bounds = zip(shown["ci_low"], shown["ci_high"], strict=True)
    counts = zip(shown["n_real"], shown["n_synthetic"], strict=True)
    chances = {(d["cohort"], d["fingerprint"]): d.get("p_value") for d in results.details}
    table = shown.assign(
        order=[known.index(key) if key in known else len(known) for key in keys],
        metric=[METRICS[key].label if key in METRICS else key for key in keys],
        place=place.where(~shown["tie"], place + " (tie)"),
        interval=["" if pd.isna(low) else f"{look.brief(low)} – {look.brief(high)}" for low, high in bounds],
        p=[chances.get((cohort_of.get(c, c), f)) for c, f in zip(shown["cohort"], shown["fingerprint"], strict=True)],
        n=[f"{real:.0f} / {synthetic:.0f}" for real, synthetic in counts],
        good=shown["direction"].map(look.GOOD_END).fillna(shown["direction"]),
        unit=[METRICS[key].unit or "none" if key in METRICS else "" for key in keys],
    )
    return table.assign(network=pd.factorize(table["encoder"])[0]).sort_values(
        ["order", "network", "rank"], kind="stable"
    )
