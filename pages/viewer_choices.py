"""What the viewer's forms have in common: the choice of cases, kept between pages and taken from addresses."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.study import Cohort, Study
from pages import shared

PREFIX = "viewer_"  # of every choice that is kept when another page, or another form, is shown
KEPT = "kept_choices"
ADDRESS_VIEW = "address_view"
ADDRESS_TOKEN = "address_token"
SIDES = {"real": "Real", "synthetic": "Synthetic"}
Choice = tuple[Cohort, str]


def restore() -> None:
    """Bring back the choices made before another page was shown."""
    for key, value in st.session_state.get(KEPT, {}).items():
        st.session_state.setdefault(key, value)


def keep() -> None:
    """Remember the choices: a widget that is not on the page loses its value."""
    found = {key: value for key, value in st.session_state.items() if str(key).startswith(PREFIX)}
    st.session_state[KEPT] = st.session_state.get(KEPT, {}) | found


def take_selection(study: Study) -> list[str]:
    """Point the choices to the cases that another page, or the address, asks for; return what is not there."""
    state, address = st.session_state, st.query_params.to_dict()
    shared.clear_address()
    wanted = [
        (state.pop(shared.SELECTED_COHORT, None), state.pop(shared.SELECTED_CASE, None)),
        state.pop(shared.SELECTED_BESIDE, None) or (None, None),
    ]
    if wanted[0][0] or address.get("cohort"):
        state[f"{PREFIX}show"] = "Brains"
    wanted += [(address.get(f"{side}cohort"), address.get(f"{side}case")) for side in ("", "real_", "synthetic_")]
    messages = [message for cohort, case in wanted if cohort and (message := select(study, cohort, case or ""))]
    if "panes" in address:
        state[f"{PREFIX}panes"] = address["panes"].split("|")
    if "radiological" in address:
        state[f"{PREFIX}radiological"] = address["radiological"] == "1"
    if "view" in address:
        state[ADDRESS_VIEW], state[ADDRESS_TOKEN] = address["view"], state.get(ADDRESS_TOKEN, 0) + 1
        state[f"{PREFIX}show"] = "Brains"
    return messages


def select(study: Study, cohort: str, case: str) -> str:
    """Choose a case for its side; return what is wrong when the study has no such case."""
    for found in study.cohorts:
        if found.name == cohort and case in [c.case_id for c in found.cases]:
            side = "synthetic" if found.role == "synthetic" else "real"  # training volumes are real ones
            st.session_state[f"{PREFIX}{side}_cohort"] = cohort
            st.session_state[f"{PREFIX}{side}_{cohort}"] = case
            return ""
    return f"There is no case {case!r} in {cohort!r}: its file was deleted, moved or renamed. Another is shown."


def choose_case(study: Study, side: str) -> Choice | None:
    """Let the user choose a cohort and one of its cases; None while there is none."""
    cohorts = {c.name: c for c in study.cohorts if (c.role == "synthetic") == (side == "synthetic") and c.cases}
    if not cohorts:
        st.info(f"No {side} volume yet.")
        return None
    key = f"{PREFIX}{side}_cohort"
    if st.session_state.get(key) not in cohorts:
        st.session_state[key] = next(iter(cohorts))
    left, right = st.columns(2)
    name = left.selectbox(f"{SIDES[side]} cohort", list(cohorts), key=key, format_func=lambda n: cohorts[n].label)
    cases = [case.case_id for case in cohorts[name].cases]
    key = f"{PREFIX}{side}_{name}"
    gone = st.session_state.get(key)
    if gone not in cases:
        st.session_state[key] = cases[0]
        if gone:
            st.warning(f"{gone} is no longer there: its file was deleted, moved or renamed. {cases[0]} is shown.")
    case = right.selectbox(f"{SIDES[side]} case ({len(cases)})", cases, key=key)
    return cohorts[name], str(case)


def choose_pair(study: Study) -> dict[str, Choice]:
    """Let the user choose a real and a synthetic case."""
    pair = {}
    for place, side in zip(st.columns(2), ("real", "synthetic"), strict=True):
        with place:
            if choice := choose_case(study, side):
                pair[side] = choice
    return pair


def show_beside(pairs: Sequence[tuple[str, str]]) -> None:
    """Have the viewer show cases, of (cohort, case): the first as the chosen one, all beside each other."""
    state = st.session_state
    state[shared.SELECTED_COHORT], state[shared.SELECTED_CASE] = pairs[0]
    kept = state[KEPT] = state.get(KEPT, {})
    if len(pairs) > 1:
        kept[f"{PREFIX}panes"] = [f"{cohort}\n{case}" for cohort, case in pairs]
    state.pop(f"{PREFIX}panes", None)
