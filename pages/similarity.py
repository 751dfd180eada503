"""Similarity: every metric with its interval and floor, as published and corrected."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from core import plots
from core.encoders import ENCODERS
from core.metrics import METRICS
from core.study import Study
from core.workflows import Results
from core.workflows.results import rank_scores
from pages import shared

FIRST_METRICS = ("fid", "mmd2-rbf", "ms-ssim", "precision", "recall", "sharpness", "mmd", "image-mmd")
VARIANTS = {"corrected": "Corrected", "published": "As published"}
COLUMNS = {
    "metric": shared.text("Metric", width=185),
    "encoder": shared.text("Encoder", "The network that turns a volume into features; none for image metrics.", 95),
    "place": shared.text("Place", "1 is best. Cohorts whose intervals overlap are tied.", 70),
    "cohort": shared.text("Cohort", width=230),
    "value": st.column_config.NumberColumn("Value", format="%.4g", width=85),
    "interval": shared.text("95 % interval", "Interval of the value.", 140),
    "floor": st.column_config.NumberColumn("Floor", help=shared.FLOOR_HELP, format="%.4g", width=85),
    "n": shared.text("N real / synthetic", "Volumes used of each cohort."),
    "good": shared.text("Good is"),
    "unit": shared.text("Unit"),
    "fingerprint": shared.text(
        "Fingerprint", "Hash of everything the number was made from. Only scores with the same one are ranked together."
    ),
}


def choose(results: Results) -> pd.DataFrame:
    """Let the user choose variants and encoders; return the ranked scores."""
    ranked = rank_scores(results)
    first, second = st.columns([2, 3])
    metrics = list(dict.fromkeys(ranked["metric"]))
    variants = first.segmented_control(
        "Variant",
        list(VARIANTS),
        default=["corrected"],
        selection_mode="multi",
        format_func=VARIANTS.__getitem__,
        key="similarity_variants",
        help="Corrected: the right estimator. As published: the numbers of the paper's code, quirks included.",
    )
    known = [name for name in ranked["encoder"].unique() if name]
    names = {name: f"{name}: {ENCODERS[name].label}" if name in ENCODERS else name for name in known}
    encoders = second.pills(
        "Encoders",
        known,
        default=known,
        selection_mode="multi",
        format_func=names.__getitem__,
        key="similarity_encoders",
    )
    chosen = st.pills(
        "Metrics",
        metrics,
        default=[name for name in metrics if name in FIRST_METRICS],
        selection_mode="multi",
        key="similarity_metrics",
    )
    ranked = ranked[ranked["metric"].isin(chosen)]
    return ranked[ranked["variant"].isin(variants) & ranked["encoder"].isin([*encoders, ""])]


def show_scores(study: Study, shown: pd.DataFrame) -> None:
    """Show the dots and, variant by variant, the table of the chosen scores."""
    names = shared.labels_of(study.cohorts)
    labels = shown["cohort"].map(names).fillna(shown["cohort"])
    dots = shown.assign(cohort=labels.map(shared.wrapped)).dropna(subset=["value"])
    shared.show_figure(plots.metric_dots(dots, colours=shared.colours_of(study)), "dots")
    st.caption(
        "Filled: corrected. Open: as published. Bars: 95 % interval. Vertical tick: floor, real against real at the "
        "same N. A bar that reaches the floor cannot be told from a perfect generator *by this score*; one beyond it "
        "shows what the score does not see (blur lies below the floor of image-mmd)."
    )
    table = readable(shown.assign(cohort=labels))
    for variant, part in table.groupby("variant", sort=False):
        st.subheader(VARIANTS[str(variant)])
        shared.show_table(part[list(COLUMNS)], COLUMNS, height="content")
    unranked = table[table["note"] != ""].drop_duplicates(["cohort", "note"])
    if len(unranked):
        lines = [f"- {row['cohort']}, {row['metric']}: {row['note']}" for _, row in unranked.iterrows()]
        st.warning("Some scores have no place:\n" + "\n".join(lines))


def readable(shown: pd.DataFrame) -> pd.DataFrame:
    """Return the scores in words: labels, places, intervals, units; in the order of the registry."""
    keys = [m if v == "corrected" else f"{m}/{v}" for m, v in zip(shown["metric"], shown["variant"], strict=True)]
    known = list(METRICS)
    place = shown["rank"].map(lambda rank: "" if pd.isna(rank) else f"{rank:.0f}")
    bounds = zip(shown["ci_low"], shown["ci_high"], strict=True)
    counts = zip(shown["n_real"], shown["n_synthetic"], strict=True)
    table = shown.assign(
        order=[known.index(key) if key in known else len(known) for key in keys],
        metric=[METRICS[key].label if key in METRICS else key for key in keys],
        place=place.where(~shown["tie"], place + " (tie)"),
        interval=["" if pd.isna(low) else f"{shared.brief(low)} – {shared.brief(high)}" for low, high in bounds],
        n=[f"{real:.0f} / {synthetic:.0f}" for real, synthetic in counts],
        good=shown["direction"].map(shared.GOOD_END).fillna(shown["direction"]),
        unit=[METRICS[key].unit or "none" if key in METRICS else "" for key in keys],
    )
    return table.assign(network=pd.factorize(table["encoder"])[0]).sort_values(
        ["order", "network", "rank"], kind="stable"
    )


def show_meaning(results: Results) -> None:
    """Explain the metrics and what a fingerprint holds."""
    with st.expander("What the metrics mean"):
        rows = [
            {"metric": m.label, "means": m.meaning, "good": shared.GOOD_END[m.direction], "unit": m.unit or "none",
             "least_n": m.least_n, "reference": m.reference}
            for m in METRICS.values()
        ]  # fmt: skip
        columns = {
            "means": shared.text("What it says", width="large"),
            "good": shared.text("Good is"),
            "least_n": shared.number("Least N", "Fewest volumes of each cohort.", "%d"),
        }
        shared.show_table(pd.DataFrame(rows), columns)
    fingerprints = results.provenance.get("fingerprints", {})
    with st.expander("What the fingerprints stand for"):
        rows = [{"fingerprint": key, **{k: str(v) for k, v in items.items()}} for key, items in fingerprints.items()]
        shared.show_table(pd.DataFrame(rows), {}) if rows else st.caption("Not recorded yet.")


study, results = shared.current_study("Similarity", "How close is each synthetic cohort to the real one?")
if results.metrics.empty:
    shared.still_computing("Similarity scores")
else:
    chosen = choose(results)
    if chosen.empty:
        st.info("Choose at least one variant.")
    else:
        show_scores(study, chosen)
    show_meaning(results)
shared.show_gaps(study, results, *{m.name for m in METRICS.values()}, *ENCODERS)
