"""What the viewer's forms have in common: the choice of cases, kept between pages and taken from addresses."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from core.study import Cohort, Study
from core.workflows.viewing import PLANES
from pages import niivue, selection, shared

FORMS = ("Brains", "Contact sheet", "Case list", "Slices for print")
SHEETS = FORMS[1:3]
PREFIX = "viewer_"  # of every choice that is kept when another page, or another form, is shown
RADIOLOGICAL = f"{PREFIX}radiological"
MOST_IN_ADDRESS = 40  # selected cases: browsers and servers refuse very long addresses
LISTS = ("panes", "cohorts")  # choices of several, in the address joined by |
KEPT = "kept_choices"
KEPT_STUDY = "kept_choices_study"  # path of the study they were made in
SHOWN = "shown_form"  # the form of the run before
GONE = "gone_cases"  # by key of a choice: what it became because a case is gone, and the words that say so
ADDRESS_VIEW = "address_view"
ADDRESS_TOKEN = "address_token"
STEPS = "address_steps"  # of the browser's history, made so far
STEPPED = "address_stepped"  # the user chose something that Back shall take back
SIDES = {"real": "Real", "synthetic": "Synthetic"}
Choice = tuple[Cohort, str]


def restore() -> None:
    """Bring back the choices made before another page, or form, was shown."""
    for key, value in st.session_state.get(KEPT, {}).items():
        st.session_state.setdefault(key, value)


def enter(form: str) -> None:
    """Have the browser told the choices of a form that was not shown before: Streamlit tells those set in this run."""
    state = st.session_state
    if state.get(SHOWN) != form:
        for key in state.get(KEPT, {}):
            if key in state and key not in (RADIOLOGICAL, f"{PREFIX}show"):  # which stand on the page already
                state[key] = state[key]
    state[SHOWN] = form


def is_radiological() -> bool:
    """Tell whether the patient's left is shown on the right, as chosen last."""
    return bool(st.session_state.get(KEPT, {}).get(RADIOLOGICAL))


def keep(study: Study) -> None:
    """Remember the choices, here and in the address: a widget that is not on the page loses its value."""
    found = {key: value for key, value in st.session_state.items() if str(key).startswith(PREFIX)}
    st.session_state[KEPT] = st.session_state.get(KEPT, {}) | found
    steps = st.session_state[STEPS] = st.session_state.get(STEPS, 0) + st.session_state.pop(STEPPED, False)
    niivue.keep_address(address_of(study, st.session_state[KEPT]), steps, st.session_state.get(ADDRESS_TOKEN, 0))


def make_step() -> None:
    """Have the browser's Back return to what is shown now: called when form, panes, cohorts or cases are chosen.

    What is stepped or dragged through, as cases by a key or the crosshair, would be a hundred steps.
    """
    st.session_state[STEPPED] = True


def went_back() -> bool:
    """Tell whether the browser's Back or Forward led here."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def arrive(study: Study) -> list[str]:
    """Restore the choices, follow an address that was opened, show the cases asked for; return what is not there.

    While the page stays, its choices lead, but for Back and Forward: the browser writes them into the address.
    """
    opened = RADIOLOGICAL not in st.session_state  # only widgets of the page shown last have a value
    if opened or went_back():
        st.session_state.pop(STEPPED, None)  # the browser made this step
    if st.session_state.setdefault(KEPT_STUDY, str(study.path)) != str(study.path):
        forget_cases()  # of another study, which may have cohorts of the same names
        st.session_state[KEPT_STUDY] = str(study.path)
    restore()
    return (take_address(study) if opened or went_back() else []) + take_wanted(study)


def forget_cases() -> None:
    """Forget which cohorts, cases and panes were chosen."""
    st.session_state.pop(GONE, None)
    begins = tuple(f"{PREFIX}{name}" for name in (*SIDES, "panes"))
    for choices in (st.session_state, st.session_state.get(KEPT, {})):
        for key in [key for key in choices if str(key).startswith(begins)]:
            del choices[key]


def address_of(study: Study, kept: Mapping[str, Any]) -> dict[str, str]:
    """Return the query that shows these choices again; the browser adds position, zoom and planes."""
    show = kept.get(f"{PREFIX}show", FORMS[0])
    link = {"study": shared.study_id(str(study.path)), "show": show}
    link["radiological"] = "01"[bool(kept.get(RADIOLOGICAL))]
    cases = {cohort.name: [case.case_id for case in cohort.cases] for cohort in study.cohorts}
    for side in SIDES:
        cohort = kept.get(f"{PREFIX}{side}_cohort", "")
        case = kept.get(f"{PREFIX}{side}_{cohort}", "")
        if cohort in cases:
            link |= {f"{side}_cohort": cohort} | ({f"{side}_case": case} if case in cases[cohort] else {})
    for name in LISTS:
        if kept.get(PREFIX + name):
            link[name] = "|".join(kept[PREFIX + name])
    if show in SHEETS:
        link |= {name: str(kept[PREFIX + name]) for name in ("plane", "sort", "down") if PREFIX + name in kept}
    if show == FORMS[-1]:
        link["position"] = ",".join(str(kept.get(PREFIX + axis, 0.0)) for axis in "xyz")
    if view := st.session_state.get(ADDRESS_VIEW):
        link["view"] = view
    if pairs := selection.selected():
        link["selected"] = "|".join("\n".join(pair) for pair in pairs[:MOST_IN_ADDRESS])
    return link


def take_address(study: Study) -> list[str]:
    """Take the choices that the address names; return what is not there."""
    state, address = st.session_state, st.query_params.to_dict()
    if address.get("show") in FORMS:
        state[f"{PREFIX}show"] = address["show"]
    elif "cohort" in address or "view" in address:
        state[f"{PREFIX}show"] = FORMS[0]
    for name in LISTS:
        if name in address:
            state[PREFIX + name] = address[name].split("|")
    if "radiological" in address:
        state[RADIOLOGICAL] = address["radiological"] == "1"
    if address.get("plane") in PLANES:
        state[f"{PREFIX}plane"] = address["plane"]
    if "sort" in address:
        state[f"{PREFIX}sort"] = address["sort"]
    if "down" in address:
        state[f"{PREFIX}down"] = address["down"] == "True"
    with suppress(ValueError):
        position = [float(number) for number in address.get("position", "").split(",")]
        if len(position) == 3 and all(math.isfinite(number) for number in position):
            state.update({PREFIX + axis: number for axis, number in zip("xyz", position, strict=True)})
    if "view" in address or went_back():  # without one it is that of the start
        state[ADDRESS_VIEW], state[ADDRESS_TOKEN] = address.get("view", ""), state.get(ADDRESS_TOKEN, 0) + 1
    sides = [side for side in SIDES if f"{side}_cohort" in address]
    messages = [choose(study, address[f"{side}_cohort"], address.get(f"{side}_case", "")) for side in sides]
    if "cohort" in address:
        messages += show_pairs(study, [(address["cohort"], address.get("case", ""))])
    messages += [missing(study, name.split("\n")[0]) for name in address.get("panes", "").split("|") if "\n" in name]
    return [message for message in messages if message]


def take_wanted(study: Study) -> list[str]:
    """Show the cases that another page, or the sheet, asks for; return what is not there."""
    state = st.session_state
    first = (state.pop(shared.SELECTED_COHORT, None), state.pop(shared.SELECTED_CASE, None))
    others = state.pop(shared.SELECTED_BESIDE, [])
    if not first[0]:
        return []
    state[f"{PREFIX}show"] = FORMS[0]
    return show_pairs(study, [first, *others])


def show_pairs(study: Study, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Put cases, of (cohort, case), into the panes; return what is not there.

    The first case of each side is that side's chosen one, so that the selectors say what the panes show. A single case
    is shown among the panes there are.
    """
    panes: list[str] = []
    messages = []
    for cohort, case in pairs:
        side = next((side_of(c) for c in study.cohorts if c.name == cohort), "")
        if side in panes:
            panes.append(f"{cohort}\n{case}")
        else:
            messages.append(choose(study, cohort, case))
            panes += [side] if not messages[-1] else []
    key = f"{PREFIX}panes"
    if len(pairs) > 1:
        st.session_state[key] = panes
    elif panes and panes[0] not in st.session_state.get(key, panes):
        st.session_state[key] = list(SIDES)  # instead of earlier cases
    return [message for message in messages if message]


def missing(study: Study, cohort: str) -> str:
    """Say what is wrong when the study has no such cohort, else nothing."""
    names = [found.name for found in study.cohorts]
    if cohort in names:
        return ""
    return f"There is no cohort {_plain(cohort)} in this study. Its cohorts are: {', '.join(names)}. Another is shown."


def stand_in(cohort: Cohort, gone: str, taken: Collection[str] = ()) -> tuple[str, str]:
    """Return the case of the same cohort, by name the next, that is shown for one that is gone, and words of both."""
    cases = [case.case_id for case in cohort.cases if case.case_id not in taken]
    instead = next((case for case in cases if case > gone), cases[0] if cases else "")
    shown = f"{instead} of the same cohort is shown" if instead else "No other case of that cohort is left to show"
    what = f"There is no case {_plain(gone)} in {cohort.name!r}: its file was deleted, moved or renamed."
    return instead, f"{what} {shown}. Put the file back, or choose another case."


def replace(key: str, value: Any, words: str) -> None:
    """Change a choice whose case is gone; the words are shown until the user chooses something else."""
    st.session_state[key] = value
    st.session_state.setdefault(GONE, {})[key] = (value, words)


def show_gone(key: str) -> None:
    """Say what was replaced in a choice."""
    gone = st.session_state.get(GONE, {})
    value, words = gone.get(key, (None, ""))
    if words and st.session_state.get(key) == value:
        st.warning(words, icon=":material/link_off:")
    else:
        gone.pop(key, None)


def replace_gone(study: Study, panes: Sequence[str]) -> None:
    """Show, in each pane of a case that is gone, another case of its cohort."""
    cohorts, shown, words = {cohort.name: cohort for cohort in study.cohorts}, [], []
    for pane in panes:
        name, _, gone = pane.partition("\n")
        if gone and gone not in [case.case_id for case in cohorts[name].cases]:
            taken = [other.partition("\n")[2] for other in (*panes, *shown) if other.startswith(f"{name}\n")]
            case, said = stand_in(cohorts[name], gone, taken)
            words.append(said)
            pane, side = f"{name}\n{case}" if case else "", side_of(cohorts[name])
            if not cohorts[name].cases and side not in (*panes, *shown):
                choose(study, name, "")  # it says that the cohort is empty, and another can be chosen
                pane = side
        shown.append(pane)
    if words:
        replace(f"{PREFIX}panes", [pane for pane in shown if pane], "\n\n".join(words))


def _plain(text: str) -> str:
    return repr(text[:100]).replace("[", "\\[").replace("<", "\\<")  # of an address: no links


def side_of(cohort: Cohort) -> str:
    """Return the side a cohort is chosen on; training volumes are real ones."""
    return "synthetic" if cohort.role == "synthetic" else "real"


def choose(study: Study, cohort: str, case: str) -> str:
    """Choose a case, or the cohort alone, for its side; return what is wrong when the study has no such cohort."""
    if wrong := missing(study, cohort):
        return wrong
    side = side_of(study.cohort(cohort))
    st.session_state[f"{PREFIX}{side}_cohort"] = cohort
    if case:
        st.session_state[f"{PREFIX}{side}_{cohort}"] = case  # one that is gone is replaced where it would be shown
    return ""


def choose_case(study: Study, side: str) -> Choice | None:
    """Let the user choose a cohort and one of its cases; None while there is none."""
    key = f"{PREFIX}{side}_cohort"
    chosen = st.session_state.get(key)  # stays so when its files are deleted
    cohorts = {c.name: c for c in study.cohorts if side_of(c) == side and (c.cases or c.name == chosen)}
    if not cohorts:
        st.info(f"No {side} volume yet.")
        return None
    if st.session_state.get(key) not in cohorts:
        st.session_state[key] = next(iter(cohorts))
    left, right = st.columns(2)
    name = left.selectbox(
        f"{SIDES[side]} cohort", list(cohorts), key=key, format_func=lambda n: cohorts[n].label, on_change=make_step
    )
    cases = [case.case_id for case in cohorts[name].cases]
    if not cases:
        lacking = "so nothing of it is shown. Put its files back if they were deleted, or choose another cohort."
        st.warning(f"{cohorts[name].label} has no volume, {lacking}", icon=":material/link_off:")
        return None
    key = f"{PREFIX}{side}_{name}"
    gone = st.session_state.get(key)
    if gone and gone not in cases:
        replace(key, *stand_in(cohorts[name], gone))
    st.session_state.setdefault(key, cases[0])
    show_gone(key)
    case = right.selectbox(f"{SIDES[side]} case ({len(cases)})", cases, key=key, on_change=make_step)
    return cohorts[name], str(case)


def choose_pair(study: Study, sides: Sequence[str] = tuple(SIDES)) -> dict[str, Choice]:
    """Let the user choose a case of each of the sides."""
    pair = {}
    for place, side in zip(st.columns(2), sides, strict=False):
        with place:
            if choice := choose_case(study, side):
                pair[side] = choice
    return pair
