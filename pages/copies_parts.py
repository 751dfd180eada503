"""The copy check: whether synthetic volumes lie nearer to what the generator saw than to other people."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from core.study import Study
from core.workflows import Results
from core.workflows import comparisons as compare
from core.workflows.judging import by_weight, judge_copies
from core.workflows.results import IMAGE
from pages import look, reads, selection, shared
from pages.similarity_parts import SPACE, TABS, encoder_label

LISTED = 20
SUSPICIOUS = 0.05  # p below which a cohort is named
NO_TRAINING = (
    "**Gap: no training cohort.** Whether volumes were copied can only be judged against what the generator saw. "
    "Give the study a `[training]` cohort on the page *Studies*, or in study.toml, and evaluate it again."
)
COHORT_WIDTH = 182  # pixels: all columns fit beside the sidebar on a small screen
PAIR_COLUMNS = {
    "cohort": look.text("Cohort", width=COHORT_WIDTH),
    "case": look.text("Synthetic case", width=218),
    "nearest_training": look.text("Nearest training case", width=150),
    "ratio": look.number("Ratio", "Distance to the nearest training case over that to the nearest held-out case. "
                           "Far below 1: suspiciously near. No unit.", width=60),
    "distance_training": look.number("To training", "Distance to the nearest training case.", width=82),
    "distance_held_out": look.number("To held-out", "Distance to the nearest real case that was held out.", width=90),
}  # fmt: skip
CHECK_COLUMNS = {
    "cohort": look.text("Cohort", width=COHORT_WIDTH),
    "space": look.text("Measured on", "Features of an encoder, or the volumes themselves.", 130),
    "nearer": look.text("Nearer to training", "Share of volumes nearer to training than to held-out people; about "
                          "50 % without copying. 95 % Wilson interval, which takes volumes as independent: look-alikes "
                          "are not.", 145),
    "p_value": look.number("p", "One-sided permutation test: training and held-out people change places at random. "
                             "Valid when many volumes share their nearest person.", "%.2g", 60),
    "finding": look.text("Finding", "Suspicious: p times the number of measures is below 0.05. Unclear: not, but "
                           "the interval lies above 50 %. None: neither.", 80),
    "p_binomial": look.number("p, binomial", "One-sided binomial test of a share above 50 %. It takes volumes as "
                                "independent: look-alikes (blurred, collapsed) fail it without any copy.", "%.2g", 85),
    "n_synthetic": look.number("N", "Synthetic volumes judged.", "%d", 45),
    "n_reference": look.number("N people", "People drawn from each of training and held-out.", "%d", 75),
}  # fmt: skip


def show_copies(results: Results, study: Study, encoder: str) -> None:
    """Show the copy check: share with p and interval, worst pairs, a way to both brains."""
    if study.training is None:
        st.info(NO_TRAINING, icon=":material/data_alert:")
        return
    if results.copy_check.empty:
        shared.still_computing("The copy check")
        return
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    check = judge_copies(results)
    rule = f"p times the number of measures below {SUSPICIOUS:g}"
    found = {kind: named(check[check["finding"] == kind], names) for kind in ("suspicious", "unclear")}
    if found["suspicious"]:
        message = "Nearer to training than chance explains"
        st.warning(f"{message} ({rule}): {found['suspicious']}. Look at the worst pairs.")
    if found["unclear"]:
        st.info(
            f"**Unclear**: {found['unclear']}. Each volume counted for itself, more than chance gives are nearer to a "
            "training person than to a held-out one. But look-alikes share their nearest person, which gives the same "
            "without any copy (permutation test). Look at the worst pairs."
        )
    if not any(found.values()):
        st.success(f"No cohort lies nearer to its training cohort than chance explains (none has {rule}).")

    asked = shared.asked_at(TABS)  # stands first
    first = pd.concat([by_weight(check[check["cohort"] == asked]), check[check["cohort"] != asked]])

    def in_words() -> pd.DataFrame:
        return first.assign(
            cohort=first["cohort"].map(names).fillna(first["cohort"]),
            space=first["space"].map(space_label),
            nearer=[share_interval(s, n) for s, n in zip(first["share"], first["n_synthetic"], strict=True)],
        )

    table = reads.kept("copy check", (*reads.basis(study), asked), in_words)
    look.show_table(table[list(CHECK_COLUMNS)], CHECK_COLUMNS, alt="Copy check of each cohort in each space")
    show_pairs(results, study, encoder)


def named(checks: pd.DataFrame, names: Mapping[str, str]) -> str:
    """Name the cohorts of rows of the copy check, and the spaces of each."""
    spaces = checks.groupby("cohort", sort=False)["space"].apply(list)
    return "; ".join(f"**{names.get(c, c)}** (on {', '.join(map(space_label, s))})" for c, s in spaces.items())


def show_pairs(results: Results, study: Study, encoder: str) -> None:
    """List the synthetic volumes nearest to a training volume; ticking a row leads to both brains."""
    names = {cohort.name: look.short_label(cohort) for cohort in study.cohorts}
    spaces = list(results.copies["space"].unique())
    if not spaces:
        return
    key = f"{SPACE}{encoder}"
    if st.session_state.get(key) not in spaces:  # a link may have chosen one
        st.session_state[key] = encoder if encoder in spaces else spaces[0]
    space = st.segmented_control("Worst pairs, measured on", spaces, required=True, format_func=space_label, key=key)

    def sort() -> pd.DataFrame:
        found = results.copies[results.copies["space"] == space]
        return found.sort_values("ratio", kind="stable", ignore_index=True)

    pairs = reads.kept("copy pairs", (*reads.basis(study), space), sort)
    shown = pairs.head(LISTED)
    table = shown.assign(cohort=shown["cohort"].map(names).fillna(shown["cohort"]))
    cases = list(zip(shown["cohort"], shown["case"], strict=True))
    rows = selection.show_cases(
        table[list(PAIR_COLUMNS)], PAIR_COLUMNS, cases, f"copies_{space}",
        alt="Synthetic volumes nearest to a training volume, smallest ratio first",
    )  # fmt: skip
    st.caption(f"The {len(shown)} smallest ratios of {len(pairs)}. Tick a row to open its brains.")
    if len(rows) == 1:
        chosen = shown.iloc[rows[0]]
        original = ("training", chosen["nearest_training"])
        shared.viewer_button(chosen["cohort"], chosen["case"], "open_copy", beside=original)


def share_interval(share: float, n: float) -> str:
    """Return a share and its interval in words."""
    low, high = compare.wilson_interval(share, int(n))
    return f"{share:.0%} [{low:.0%} – {high:.0%}]"


def space_label(space: str) -> str:
    """Return the name of a space of the copy check."""
    return "volumes themselves" if space == IMAGE else encoder_label(space)
