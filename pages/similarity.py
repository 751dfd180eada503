"""Similarity: who is closest to the real cohort, by which score and encoder, and how stable that answer is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.encoders import ENCODERS
from core.metrics import METRICS
from core.study import Study
from core.workflows import Results
from core.workflows import comparisons as compare
from core.workflows.verdicts import controls_of
from pages import copies_parts, look, reads, shared, table_one_parts
from pages import similarity_parts as parts

CHOICES = ("variant", "encoder", "metric")  # keys of the choices, which the address holds


def choose(ranked: pd.DataFrame, source: parts.Source) -> parts.Focus:
    """Let the user choose one variant, encoder and metric; all are cached, so each answers at once."""
    linked = {key: st.query_params.get(key, "") for key in CHOICES if key not in st.session_state}
    first, second = st.columns([1, 2])
    variants = [name for name in parts.VARIANTS if name in set(ranked["variant"])]
    variant = first.segmented_control(
        "Variant",
        variants,
        default=variants[0],
        required=True,
        format_func=parts.VARIANTS.__getitem__,
        key="variant",
        bind="query-params",
        help="Corrected: the right estimator. As published: the numbers of the paper's code, quirks included.",
    )
    encoders = [name for name in dict.fromkeys(ranked["encoder"]) if name]
    encoder = ""
    if encoders:
        cards = "; ".join(f"{parts.encoder_label(n)}: {ENCODERS[n].card}" for n in encoders if n in ENCODERS)
        encoder = second.segmented_control(
            "Encoder", encoders, default=encoders[0], required=True, format_func=parts.encoder_label, key="encoder",
            bind="query-params", help=cards,
        )  # fmt: skip
    known = [metric for metric in METRICS.values() if metric.variant == variant]
    there = set(ranked.loc[ranked["variant"] == variant, "metric"])
    options = {m.name: parts.metric_label(m.key) for m in known if m.name in there}
    options |= {name: name for name in there - set(options)}
    metric = st.pills(
        "Metric", list(options), default=next(iter(options)), required=True, format_func=options.__getitem__,
        key="metric", bind="query-params",
    )  # fmt: skip
    # an address holds what is on screen
    shown = ([parts.VARIANTS[name] for name in variants], [parts.encoder_label(n) for n in encoders], options.values())
    say_unknown(linked, dict(zip(CHOICES, shown, strict=True)))
    return parts.Focus(str(metric), str(variant), str(encoder), source)


def say_unknown(linked: Mapping[str, str], known: Mapping[str, Collection[str]]) -> None:
    """Say which choices of a link this study does not have; the first of each is shown then."""
    lacking = [f"{key} `{linked[key]}`" for key in linked if linked[key] and linked[key] not in known[key]]
    if lacking:
        st.warning(
            f"The link asks for what this study has no score of: {', '.join(lacking)}. The first choice is shown.",
            icon=":material/link_off:",
        )


def show_focus(study: Study, results: Results, scores: pd.DataFrame, focus: parts.Focus) -> None:
    """Show the chosen score: values with intervals and floor, and the curve against N."""
    names = look.labels_of(study.cohorts)
    log = parts.choose_log(scores)

    def draw() -> Any:
        cohort = scores["cohort"].map(names).fillna(scores["cohort"]).map(look.wrapped)
        encoder = scores["encoder"].map(parts.encoder_label, na_action="ignore")
        known = scores.assign(metric=focus.label, cohort=cohort, encoder=encoder).dropna(subset=["value"])
        figure = plots.metric_dots(known, colours=look.colours_of(study))
        return figure.update_layout(showlegend=False).update_xaxes(type="log" if log else None)

    left, right = st.columns(2)
    with left:
        alt = f"{focus.label} of each cohort with 95 % interval and floor"
        look.show_kept("focus", (*reads.basis(study), focus, log), draw, alt=alt)
        st.caption(f"{parts.describe(focus.key, scores)} Bars: 95 % interval. Vertical tick: floor.")
    with right:
        parts.show_curve(results, scores, focus, study, log=log)


def show_meaning(results: Results) -> None:
    """Explain the metrics and what a fingerprint holds."""
    meaning = st.expander("What the metrics mean", key="metrics_mean", on_change="rerun")
    if meaning.open:
        rows = [
            {"metric": m.label, "means": m.meaning, "good": look.GOOD_END[m.direction], "unit": m.unit or "none",
             "least_n": m.least_n, "reference": m.reference}
            for m in METRICS.values()
        ]  # fmt: skip
        columns = {
            "means": look.text("What it says", width="large"),
            "good": look.text("Good is"),
            "least_n": look.number("Least N", "Fewest volumes of each cohort.", "%d"),
        }
        with meaning:
            look.show_table(pd.DataFrame(rows), columns)
    stored = st.expander("What the fingerprints stand for", key="fingerprints_mean", on_change="rerun")
    if stored.open:
        fingerprints = results.provenance.get("fingerprints", {})
        rows = [{"fingerprint": key, **{k: str(v) for k, v in items.items()}} for key, items in fingerprints.items()]
        with stored:
            if rows:
                look.show_table(pd.DataFrame(rows), {})
            else:
                st.caption("Not recorded yet.")


@st.fragment
def show_page(study: Study, results: Results, path: str, stamp: reads.Stamp) -> None:
    """Show the answer and what it rests on; a toggle redraws only this part, from the cache."""
    ranked = reads.cached_ranks(path, stamp)
    top = st.container(border=True)
    focus = choose(ranked, (path, stamp))
    scores = compare.select(ranked, focus.metric, focus.variant, focus.encoder)
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    controls = controls_of(study)
    agreement = parts.cached_agreement(path, stamp, focus.metric, focus.variant)
    with top:
        of = (*reads.basis(study), focus)
        st.markdown(reads.kept("answer", of, lambda: parts.answer(scores, focus, names, controls)))
        if scores["encoder"].any():
            encoders = {name: parts.encoder_label(name) for name in agreement.tau.index}
            st.markdown(reads.kept("sentence", of, lambda: compare.order_sentence(agreement, encoders, names)))
    with st.container(key="similarity_focus"):
        show_focus(study, results, scores, focus)
    labels, every = look.labels_of(study.cohorts), compare.select(ranked, focus.metric, focus.variant)
    colours = look.colours_of(study)
    with st.container(key=parts.TABS):
        look.show_tabs(  # beside each, how the keys of its choices begin
            {
                "Table 1": (lambda: show_table_one(study, focus, controls), ("table_one_tab",)),
                "Order under each encoder": (lambda: parts.show_order(agreement, every, labels, colours, focus), ()),
                "Map of all volumes": (lambda: parts.show_map(results, study, focus), ("similarity_map",)),
                parts.COPY_TAB: (lambda: copies_parts.show_copies(results, study, focus.encoder), (parts.SPACE,)),
                "All scores": (lambda: parts.show_all(study, results, ranked), ("all_variants",)),
            },
            parts.TAB,
        )


def show_table_one(study: Study, focus: parts.Focus, controls: Collection[str]) -> None:
    """Show Table 1 filled by this study, or as the paper printed it."""
    ours, theirs = st.tabs(["This study", "The paper, as printed"], key="table_one_tab", on_change="rerun")
    if ours.open:
        with ours:
            cohorts = tuple(cohort.name for cohort in study.synthetic)
            encoders = tuple(study.settings.encoders)
            cells = table_one_parts.cached_cells(*focus.source, cohorts, encoders, focus.variant, tuple(controls))
            table_one_parts.show_study_table(cells, study, focus.variant)
    if theirs.open:
        with theirs:
            table_one_parts.show_paper_table()
    table_one_parts.explain_variants("image-mmd" in METRICS)


study, results = shared.current_study("Similarity", "How close is each synthetic cohort to the real one?")
if results.metrics.empty:
    shared.still_computing("Similarity scores")
else:
    path = shared.study_path()
    show_page(study, results, path, reads.results_stamp(path))
    show_meaning(results)
shared.show_gaps(study, results, *{m.name for m in METRICS.values()}, *ENCODERS, "copy", "map")
