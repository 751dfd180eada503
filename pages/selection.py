"""The cases a user selected: one selection, which every chart, table and sheet of cases shows and changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.errors import InputError
from core.study import Study
from pages import look, reads, shared

CASES = "selected_cases"  # (cohort, case) in the order they were selected
OF_STUDY = "selected_study"  # path of the study they belong to
LINKED = "selected_by_link"  # those that a link selected, until others are
REPLACED = "selected_by_hand"  # (study, those that a link replaced)
TOLD = "selected_told"  # what a link replaced was said
IN_SIDEBAR = "selected_in_sidebar"  # those that the sidebar shows
LISTED = 6  # names in the sidebar
PANES = 8  # brains opened at once: a browser draws in so many panes
NONE_SELECTED = "No case of these is selected."
HOW = "Click points, or draw around them, to select their cases on every page."
Pair = tuple[str, str]
Draw = Callable[[Collection[Pair]], Any]


def selected() -> list[Pair]:
    """Return the selected cases of the chosen study, as (cohort, case)."""
    if st.session_state.get(OF_STUDY) != st.session_state.get(shared.STUDY):
        return []
    return list(st.session_state.get(CASES, []))


def select(pairs: Sequence[Pair]) -> None:
    """Select these cases and no others."""
    st.session_state[CASES] = list(dict.fromkeys(pairs))
    st.session_state[OF_STUDY] = st.session_state.get(shared.STUDY)


def lead(pairs: Sequence[Pair]) -> None:
    """Select the cases that a link is about; the sidebar gives back those that were selected by hand."""
    if (by_hand := selected()) and by_hand != st.session_state.get(LINKED):
        st.session_state[REPLACED] = (st.session_state.get(shared.STUDY), by_hand)
        st.session_state[TOLD] = False
    select(pairs)
    st.session_state[LINKED] = selected()


def replaced() -> list[Pair]:
    """Return the cases selected by hand that a link replaced."""
    study, pairs = st.session_state.get(REPLACED, ("", []))
    return [] if study != st.session_state.get(shared.STUDY) or pairs == selected() else list(pairs)


def _restore(pairs: Sequence[Pair]) -> None:
    """Select these cases and forget what a link replaced."""
    st.session_state.pop(REPLACED, None)
    select(pairs)


def rename(cohorts: Mapping[str, str]) -> None:
    """Keep the selected cases of cohorts that got another name; ``cohorts`` maps old to new."""

    def named(pairs: Sequence[Pair]) -> list[Pair]:
        return [(cohorts.get(cohort, cohort), case) for cohort, case in pairs]

    before = named(replaced())
    select(named(selected()))
    st.session_state[REPLACED] = (st.session_state.get(shared.STUDY), before)


def show_selected() -> None:
    """Show in the sidebar, on every page, what is selected; at first what the address says."""
    if CASES not in st.session_state:
        select(_in_address(st.query_params.get("selected", "")))
    pairs = st.session_state[IN_SIDEBAR] = selected()
    before = replaced()
    if not pairs and not before:
        return
    with st.sidebar.container(border=True):
        st.markdown(f"**{count(pairs)} selected**")
        more = f"  \nand {len(pairs) - LISTED} more" if len(pairs) > LISTED else ""
        st.caption("  \n".join(f"{case} · {cohort}" for cohort, case in pairs[:LISTED]) + more)
        if pairs:
            open_button(pairs, "open_selected")
        changes: dict[str, Any] = {"on_click": _restore, "width": "stretch"}
        if before:
            if not st.session_state.get(TOLD, True):
                st.session_state[TOLD] = True
                st.toast("The selection is now what the link is about. Yours is kept: *Back to your selection*.")
            label, icon = f"Back to your selection ({count(before)})", ":material/undo:"
            st.button(label, key="selected_before", icon=icon, args=(before,), **changes)
        st.button("Clear", key="clear_selected", icon=":material/close:", args=([],), **changes)


def follow() -> None:
    """Have the sidebar show the selection, where it was changed in a part of the page that runs alone."""
    pairs = selected()
    if st.session_state.get(IN_SIDEBAR, pairs) != pairs:
        st.session_state[IN_SIDEBAR] = pairs  # asked for once
        st.rerun()


def _in_address(text: str) -> list[Pair]:
    """Return the cases of an address that the chosen study has."""
    pairs = [(cohort, case) for cohort, line, case in (name.partition("\n") for name in text.split("|")) if line]
    study = _chosen_study() if pairs else None
    known = {(cohort.name, case.case_id) for cohort in study.cohorts for case in cohort.cases} if study else set()
    return [pair for pair in pairs if pair in known]


def _chosen_study() -> Study | None:
    """Return the chosen study; None when it cannot be read, which the page explains."""
    path = shared.study_path()
    try:
        return reads.cached_study(path, reads.study_version(path))
    except InputError:
        return None


def open_button(pairs: Sequence[Pair], key: str) -> None:
    """Show a button that opens cases beside each other in the viewer; several synthetic ones beside a real one.

    Without cases it takes its room, so that nothing moves when some are selected.
    """
    if not pairs:
        st.button("Open selected", key=key, icon=":material/view_in_ar:", disabled=True, help=NONE_SELECTED)
        return
    beside = real_to_compare(pairs) if len(pairs) > 1 else []
    shown = pairs[: PANES - len(beside)]
    what = f"the first {len(shown)}" if len(pairs) > len(shown) else f"all {len(shown)}"
    what = shown[0][1] if len(pairs) == 1 else what
    where = "beside a real brain" if beside else "in the viewer"
    if st.button(f"Open {what} {where}", key=key, icon=":material/view_in_ar:", type="primary"):
        first, *others = [*beside, *shown]
        shared.open_viewer(*first, others)


def real_to_compare(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the real case that the viewer shows (cohort, ""), when all of these are synthetic; else nothing."""
    study = _chosen_study()
    if study is None or not study.real.cases:
        return []
    return [] if {name for name, _ in pairs} - {c.name for c in study.synthetic} else [(study.real.name, "")]


def mark(pair: Pair, wanted: bool) -> None:
    """Select a case beside the others, or no longer."""
    pairs = [other for other in selected() if other != pair]
    select([*pairs, pair] if wanted else pairs)


def count(pairs: Sequence[Pair]) -> str:
    """Say how many cases there are."""
    return f"{len(pairs)} case{'' if len(pairs) == 1 else 's'}"


def show_chart(study: Study, draw: Draw, key: str, of: tuple[Any, ...], **options: Any) -> None:
    """Show a figure whose points are cases (customdata: case, cohort's label); selecting points selects them.

    Points of selected cases stand out, wherever they were selected, and can be opened.

    Parameters
    ----------
    study : Study
        That the cases belong to.
    draw : callable
        Given the (case, cohort's label) that are drawn in any case, returns the figure.
    key : str
        Of the widget.
    of : tuple
        Choices the figure was made for, see `reads.kept`.
    **options
        Of `look.show_dressed`.
    """
    follow()
    cohorts = {name: c.name for c in study.cohorts for name in (c.label, look.short_label(c), c.name)}
    figure, of, pairs, marked = _figure(key, of, draw, []), (*of, look.theme()), selected(), []
    if pairs:
        points = _points(figure, cohorts)
        if not points.keys() >= set(pairs):  # of another cohort, or left out of a large one
            keep = [(case, label) for cohort, case in pairs for label, name in cohorts.items() if name == cohort]
            figure = _figure(key, (*of, *keep), draw, keep)
            points = _points(figure, cohorts)
        marked = [pair for pair in pairs if pair in points]
        plain, marks = figure, tuple(points[pair] for pair in marked)
        figure = reads.kept(f"{key}, marked", (*of, *marks), lambda: plots.mark_cases(plain, set(marks)))
    look.show_dressed(figure, key, on_select=_take_points(key, cohorts), **options)
    open_button(marked, f"open_{key}")


def _figure(key: str, of: tuple[Any, ...], draw: Draw, keep: Collection[Pair]) -> Any:
    """Return a chart, kept, that reacts to the mouse as Streamlit sets it: else it is drawn again for that."""
    return look.kept_figure(key, of, lambda: draw(keep).update_layout(**plots.CLICKS))


def _points(figure: Any, cohorts: Mapping[str, str]) -> dict[Pair, Pair]:
    """Return the (cohort, case) that a figure draws, with what it calls them."""
    return {(cohorts.get(label, label), case): (case, label) for case, label in plots.cases_of(figure)}


def _take_points(key: str, cohorts: Mapping[str, str]) -> Callable[[], None]:
    """Return what selects the cases of the points chosen in a chart."""

    def take() -> None:
        points = [look.words_of(point) for point in st.session_state[key]["selection"]["points"]]
        if pairs := [(cohorts.get(point[1], point[1]), str(point[0])) for point in points if len(point) > 1]:
            select(pairs)

    return take


def show_cases(
    table: pd.DataFrame, columns: Mapping[str, Any], pairs: Sequence[Pair], key: str, **options: Any
) -> list[int]:
    """Show a table with one case, of (cohort, case) in ``pairs``, a row; ticking rows selects their cases.

    Rows of cases selected elsewhere are ticked. Returns the rows ticked, below which they can be opened.
    """
    follow()
    chosen = set(selected())
    rows = [row for row, pair in enumerate(pairs) if pair in chosen]
    ticked = st.session_state.get(key)
    if sorted(ticked["selection"]["rows"] if ticked else []) != rows:
        st.session_state[key] = {"selection": {"rows": rows}}
    choices = {"on_select": _take_rows(key, pairs, rows), "selection_mode": "multi-row", "key": key}
    look.show_table(table, columns, **choices, **options)
    open_button([pairs[row] for row in rows], f"open_{key}")
    return rows


def _take_rows(key: str, pairs: Sequence[Pair], shown: Sequence[int]) -> Callable[[], None]:
    """Return what selects the cases of the rows ticked in a table, beside those selected that it does not list.

    ``shown`` are the rows that the page ticked: a browser tells of them too, with the click into another table.
    """

    def take() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        if sorted(rows) == list(shown):
            return
        elsewhere = [pair for pair in selected() if pair not in pairs]
        select([*elsewhere, *(pairs[row] for row in rows if row < len(pairs))])

    return take
