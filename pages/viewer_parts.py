"""The linked panes of the viewer, and what is known about the cases in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core.errors import InputError
from core.study import Cohort, Study, read_study
from core.workflows import Results
from core.workflows.results import qc_of
from core.workflows.viewing import nearest_by_tiv, region_facts, template_files
from pages import niivue, shared, slices_parts
from pages.viewer_choices import ADDRESS_TOKEN, ADDRESS_VIEW, PREFIX, Choice, choose_pair, keep

WITH_FACTS = 2  # cases described one beside the other; of more, the scores stand in a table
WARM = "warm_cases"  # cases whose neighbours the browser asked for
PANES = {
    "real": "Real case",
    "synthetic": "Synthetic case",
    "nearest": "Real brain nearest in size",
    "template": "Template",
}
PANES_HELP = (
    "What is shown side by side. Nearest in size: the case of the real cohort whose total intracranial volume is "
    "nearest to the synthetic case's. Any other case can be added by its name."
)
KEYS_HELP = (
    "**Drag** moves the crosshair in all panes, **wheel** goes through the slices, **right drag** sets the window, "
    "**middle drag** or two fingers pan and zoom. Keys: **J**/**K** next and previous case of the framed pane, "
    "**space** segmentation, **1–5** planes, **arrows** move by a voxel, with **shift** through the slices. Under each "
    "brain: the region under the cursor, its volume as measured, and the percentile of that region (left and right "
    "averaged) among the real brains at equal head size. Shown with 256 grey levels (steps of 0.008); scores use "
    "the full values."
)


@st.fragment
def show_brains(study: Study, results: Results, radiological: bool) -> None:
    """Show the chosen brains in linked panes; another case redraws only this part."""
    pair = choose_pair(study)
    panes = make_panes(study, results, pair, choose_panes(study))
    link = {"study": shared.study_id(str(study.path)), "panes": "|".join(st.session_state[f"{PREFIX}panes"])}
    for side, (cohort, case) in pair.items():
        link |= {f"{side}_cohort": cohort.name, f"{side}_case": case}
    possible = niivue.show_panes(
        panes,
        study=link["study"],
        link=link | {"radiological": "01"[radiological]},
        view=st.session_state.get(ADDRESS_VIEW, ""),
        token=st.session_state.get(ADDRESS_TOKEN, 0),
        bounds=bounds_of(study),
        radiological=radiological,
        on_step=take_step,
        on_warm=take_wish,
    )
    if not possible:
        st.info("This browser has no WebGL 2, so the linked viewer cannot draw. These slices show the same brains.")
        slices_parts.show_planes(study, results, list(pair.values()), radiological)
    else:
        st.caption("How to move, and what is shown", help=KEYS_HELP)
    shown = shown_cases(study, panes)
    if len(shown) > WITH_FACTS:
        show_scores(results, shown)
        return keep()
    for place, (cohort, case) in zip(st.columns(max(1, len(shown))), shown, strict=False):
        with place:
            show_facts(results, cohort, case)
    keep()


def choose_panes(study: Study) -> list[str]:
    """Let the user choose what is shown beside each other."""
    others = {f"{c.name}\n{case.case_id}": f"{case.case_id} · {c.label}" for c in study.cohorts for case in c.cases}
    names = PANES | others
    key = f"{PREFIX}panes"
    chosen = st.session_state.get(key, ["real", "synthetic"])
    st.session_state[key] = [name for name in chosen if name in names] or ["real", "synthetic"]
    return st.multiselect("Panes", list(names), key=key, format_func=lambda name: names[name], help=PANES_HELP)


def make_panes(study: Study, results: Results, pair: dict[str, Choice], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the component shows, with the neighbours of the chosen cases once the browser asked for them."""
    warm = st.session_state.get(WARM) == "\n".join(pair[key][1] for key in wanted if key in pair and steps(pair[key]))
    panes = []
    for key in wanted:
        if key == "template":
            panes.append(template_pane(study))
        elif key == "nearest":
            panes.append(nearest_pane(study, results, pair))
        elif key in pair:
            panes.append(stepping_pane(study, results, key, pair[key], warm))
        elif "\n" in key:
            cohort, case = key.split("\n", 1)
            panes.append(case_pane(study, results, key, study.cohort(cohort), case))
    return panes


def steps(choice: Choice) -> bool:
    """Tell whether there is another case to go to."""
    return len(choice[0].cases) > 1


def stepping_pane(study: Study, results: Results, key: str, choice: Choice, warm: bool) -> dict[str, Any]:
    """Return a pane that goes to the next and previous case of its cohort."""
    cohort, case = choice
    cases = [c.case_id for c in cohort.cases]
    pane = case_pane(study, results, key, cohort, case) | {"cases": cases}
    if warm and len(cases) > 1:
        place = cases.index(case)
        pane["next"] = case_pane(study, results, key, cohort, cases[(place + 1) % len(cases)], ".next")
        pane["previous"] = case_pane(study, results, key, cohort, cases[place - 1], ".previous")
    return pane


def case_pane(
    study: Study, results: Results, key: str, cohort: Cohort, case: str, place: str = "", title: str = ""
) -> dict[str, Any]:
    """Return one case as the component shows it; a case that cannot be read says why in its place."""
    pane = {"key": key, "title": title or shared.short_label(cohort), "case": case, "cohort": cohort.name}
    try:
        version = shared.case_version(study, results, cohort.name, case)
        image, labels = shared.cached_files(str(study.path), cohort.name, case, version)
    except InputError as error:
        return pane | {"error": f"{case}: {error.what} {error.remedy}", "facts": {}}
    facts = cached_facts(results, str(study.path), shared.results_stamp(str(study.path)), cohort.name, case)
    return pane | files_of((image, labels), key + place) | {"facts": facts.get(case, {})}


@st.cache_resource(max_entries=256, show_spinner=False)
def cached_facts(
    _results: Results, path: str, stamp: tuple[tuple[str, int], ...], cohort: str, case: str
) -> dict[str, dict[int, tuple[float, float | None]]]:
    """Return the regions of a case; not to be written into."""
    del path, stamp
    return region_facts(_results, cohort, case)


def files_of(content: tuple[bytes, bytes | None], place: str) -> dict[str, Any]:
    """Return the addresses of an image and its label map."""
    image, labels = content
    return {
        "image": niivue.serve(image, "application/gzip", f"{place}.image"),
        "labels": niivue.serve(labels, "application/gzip", f"{place}.labels") if labels else None,
        "error": "",
    }


def nearest_pane(study: Study, results: Results, pair: dict[str, Choice]) -> dict[str, Any]:
    """Return the real brain nearest in size to the synthetic one, else to the chosen real one."""
    title = "Real, nearest in size"
    cohort, case = pair.get("synthetic") or pair["real"]
    found = nearest_by_tiv(results, cohort.name, case, study.real.name)
    if found is None or found not in [c.case_id for c in study.real.cases]:
        reason = "The total intracranial volumes are not known yet: evaluate the study."
        return {"key": "nearest", "title": title, "case": "", "error": reason, "facts": {}}
    return case_pane(study, results, "nearest", study.real, found, title=title)


def template_pane(study: Study) -> dict[str, Any]:
    """Return the template all brains of the study were brought to."""
    name = study.settings.template
    pane = {"key": "template", "title": "Template", "case": "ICBM152, scaled" if name == "embedded" else name}
    try:
        return pane | files_of(cached_template(str(study.path), study.grid.name), "template") | {"facts": {}}
    except InputError as error:
        return pane | {"error": f"{error.what} {error.remedy}", "facts": {}}


@st.cache_data(max_entries=4, show_spinner=False)
def cached_template(path: str, grid: str) -> tuple[bytes, bytes | None]:
    """Return the viewer's files of the template of a study."""
    del grid
    return template_files(read_study(path))


def bounds_of(study: Study) -> list[dict[str, float]]:
    """Return the ends of each axis of the study's grid, mm."""
    grid = study.grid
    ends = zip(grid.origin, grid.shape, strict=True)
    return [{"low": low, "high": low + (count - 1) * grid.spacing} for low, count in ends]


def take_step() -> None:
    """Choose the case the viewer went to."""
    wish = st.session_state["niivue"].get("step") or {}
    side = wish.get("pane")
    cohort = st.session_state.get(f"{PREFIX}{side}_cohort")
    if cohort:
        st.session_state[f"{PREFIX}{side}_{cohort}"] = wish["case"]


def take_wish() -> None:
    """Note for which cases the viewer wants the neighbours."""
    st.session_state[WARM] = st.session_state["niivue"].get("warm")


def shown_cases(study: Study, panes: Sequence[dict[str, Any]]) -> list[Choice]:
    """Return the cases in the panes, each once."""
    found = dict.fromkeys((pane["cohort"], pane["case"]) for pane in panes if "cohort" in pane)
    return [(study.cohort(cohort), case) for cohort, case in found]


def show_scores(results: Results, shown: Sequence[Choice]) -> None:
    """List the QC scores of the cases, a row each."""
    rows = []
    for cohort, case in shown:
        qc = qc_of(results, cohort.name)
        scores = qc.loc[case].to_dict() if case in qc.index else {}
        rows.append({"case": case, "cohort": shared.short_label(cohort), **scores})
    table = pd.DataFrame(rows)
    names = [name for name in table if name not in ("case", "cohort")]
    columns = {name: shared.number(name, "QC score, 0 to 1; higher is better.", "%.3f") for name in names}
    shared.show_table(table, columns)


def show_facts(results: Results, cohort: Cohort, case: str) -> None:
    """Say who the case is and how its segmentation scored."""
    person = next(c for c in cohort.cases if c.case_id == case)
    rows = results.cases[(results.cases["cohort"] == cohort.name) & (results.cases["case"] == case)]
    facts = {
        "participant": person.participant,
        "age": f"{person.age:.0f} years" if person.age is not None else "",
        "sex": {"F": "female", "M": "male"}.get(person.sex, ""),
        "site": person.site,
        "notes": "; ".join(rows["notes"].dropna().astype(str)),
    }
    st.markdown(f"**{cohort.label}** · {case}")
    st.caption(" · ".join(f"{key}: {value}" for key, value in facts.items() if value) or "No participant facts.")
    qc = qc_of(results, cohort.name)
    if case not in qc.index:
        st.caption("QC scores: not known yet.")
        return
    scores = pd.DataFrame([qc.loc[case]])
    threshold = results.quality["threshold"].dropna().head(1).tolist()
    columns = {name: shared.number(name, "QC score, 0 to 1; higher is better.", "%.3f") for name in scores}
    shared.show_table(scores, columns)
    if threshold:
        failed = scores.columns[(scores.iloc[0] < threshold[0])].tolist()
        verdict = f"fails: {', '.join(failed)}" if failed else "passes"
        st.caption(f"QC scores (0 to 1, higher is better) against the threshold {threshold[0]:.3f}: **{verdict}**.")
