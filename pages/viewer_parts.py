"""The linked panes of the viewer, and what is known about the cases in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from core import anatomy
from core.errors import InputError
from core.study import Cohort, Study, read_study
from core.workflows import Results
from core.workflows.results import qc_of
from core.workflows.viewing import case_verdicts, nearest_by_tiv, region_facts, template_files
from pages import look, niivue, reads, shared, slices_parts, viewer_choices
from pages.viewer_choices import ADDRESS_TOKEN, ADDRESS_VIEW, PREFIX, SIDES, Choice, choose_pair, keep, restore

SPACES = {  # whether a cohort's volumes come from a table
    False: (
        "atlas space",
        "Volumes are measured on the image shown, which is aligned to the atlas. Where that stretched the head, as "
        "SynthScope's own alignment does, they are not those of the person's own head (native space).",
    ),
    True: (
        "as in its table",
        "Volumes are those of the table that the study gives for this cohort, in the space its program measured in: "
        "SynthSeg's are those of the scan it was given, often the person's own head (native space).",
    ),
}
NO_WEBGL = (
    "This browser has no WebGL 2, its 3D graphics, so the linked panes with zoom, 3D and regions are missing; the "
    "slices below, *Contact sheet* and *Case list* work without it."
)
UNKNOWN = "QC unknown yet"
AROUND = "cases_around"  # cases whose neighbours the browser asked for
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
    "**space** segmentation, **1–5** planes, **arrows** move by a voxel, with **shift** through the slices. Above each "
    "brain: total intracranial volume and what the QC gate says. Below: the region under the cursor, its volume and in "
    "which space it was measured, and the percentile of that region (left and right averaged) among the real brains at "
    "equal head size. Shown with 256 grey levels (steps of 0.008); scores use the full values."
)


@st.fragment
def show_brains(study: Study, results: Results, radiological: bool) -> None:
    """Show the chosen brains in linked panes; another case redraws only this part."""
    restore()  # a selector that was not needed comes back with its case
    with st.container(gap="xsmall"):
        selectors, more = st.columns([8, 1], vertical_alignment="bottom")
        with more.popover("Panes", key="panes_popover", width="stretch", help=PANES_HELP):
            wanted = choose_panes(study)
        viewer_choices.show_gone(f"{PREFIX}panes")  # in sight, not behind the button
        with selectors:
            pair = choose_pair(study, sides_of(study, wanted))
        panes = make_panes(study, results, pair, wanted)
        possible = niivue.show_panes(
            panes,
            study=shared.study_id(str(study.path)),
            view=st.session_state.get(ADDRESS_VIEW, ""),
            token=st.session_state.get(ADDRESS_TOKEN, 0),
            bounds=bounds_of(study),
            radiological=radiological,
            on_wish=take_wish,
        )
    shown = shown_cases(study, panes)
    if not possible:
        st.info(NO_WEBGL, icon=":material/info:")
        slices_parts.show_planes(study, results, shown, radiological)
    else:
        st.caption("How to move, and what is shown", help=KEYS_HELP)
    show_facts(results, shown)
    keep(study)


def sides_of(study: Study, wanted: Sequence[str]) -> list[str]:
    """Return the sides whose chosen case is in the panes: only these are chosen."""
    nearest = "synthetic" if any(cohort.cases for cohort in study.synthetic) else "real"  # in size to this one
    return [side for side in SIDES if side in wanted or (side == nearest and "nearest" in wanted)]


def choose_panes(study: Study) -> list[str]:
    """Let the user choose what is shown beside each other."""
    others = {f"{c.name}\n{case.case_id}": f"{case.case_id} · {c.label}" for c in study.cohorts for case in c.cases}
    names = PANES | others
    key = f"{PREFIX}panes"
    cohorts = {cohort.name for cohort in study.cohorts}
    chosen = st.session_state.get(key, ["real", "synthetic"])
    st.session_state[key] = [n for n in chosen if n in names or ("\n" in n and n.partition("\n")[0] in cohorts)]
    viewer_choices.replace_gone(study, st.session_state[key])
    if not st.session_state[key]:
        st.session_state[key] = ["real", "synthetic"]
    options = {"on_change": viewer_choices.make_step, "select_all": False}  # no browser draws hundreds of brains
    return st.multiselect("Shown side by side", list(names), key=key, format_func=names.__getitem__, **options)


def make_panes(study: Study, results: Results, pair: dict[str, Choice], wanted: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the component shows, with the neighbours of the chosen cases once the browser asked for them."""
    warm = st.session_state.get(AROUND) == "\n".join(pair[key][1] for key in wanted if key in pair and steps(pair[key]))
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
    pane = {"key": key, "title": title or look.short_label(cohort), "case": case, "cohort": cohort.name}
    pane |= known_of(study, results, cohort, case)
    try:
        version = reads.case_version(study, results, cohort.name, case)
        image, labels = reads.cached_files(str(study.path), cohort.name, case, version)
    except InputError as error:
        file = next((found.path for found in cohort.cases if found.case_id == case), None)
        pane |= no_longer(pane, gone=file is None or not file.exists())
        return pane | {"error": f"{case}: {error.what} {error.remedy}", "facts": {}}
    facts = cached_facts(results, str(study.path), reads.results_stamp(str(study.path)), cohort.name, case)
    return pane | files_of((image, labels), key + place) | {"facts": facts.get(case, {})}


def known_of(study: Study, results: Results, cohort: Cohort, case: str) -> dict[str, Any]:
    """Return what a reader wants to know of a case first, in a line, and in which space its volumes are."""
    path = str(study.path)
    verdicts, sizes = cached_known(results, path, reads.results_stamp(path))
    verdict, _, why = verdicts.get((cohort.name, case), UNKNOWN.removeprefix("QC ")).partition(": ")
    size = sizes.get((cohort.name, case))
    space, meaning = SPACES[bool(cohort.volumes)]
    known = [f"TIV {size / 1000:,.0f} cm³ ({space})"] if size else []
    known += [f"fails {why}" if verdict.startswith("fails") else why] if why else []
    return {
        "verdict": f"QC {verdict}",
        "fails": why != "" or verdict.startswith("fails"),
        "known": known,
        "space": space,
        "meaning": meaning,
    }


def no_longer(pane: Mapping[str, Any], *, gone: bool) -> dict[str, Any]:
    """Return what is said above a case whose file is gone, or cannot be used: what is known of it is of the past."""
    judged = [pane["verdict"], *pane["known"]] if pane["verdict"] != UNKNOWN else pane["known"]
    words = [f"from the last evaluation: {judged[0]}", *judged[1:]] if judged else []
    return {"verdict": "File is gone" if gone else "File cannot be used", "known": words, "fails": True}


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_known(
    _results: Results, path: str, stamp: tuple[tuple[str, int], ...]
) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], float]]:
    """Return what the gate says of all cases, and their total intracranial volumes (mm³); not to be written into."""
    del path, stamp
    sizes = _results.volumes.set_index(["cohort", "subject"])[anatomy.TIV].dropna()
    return case_verdicts(_results), sizes.to_dict()


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
    chosen = pair.get("synthetic") or pair.get("real")
    if not chosen:
        reason = "No case is chosen that a real one could be near to."
        return {"key": "nearest", "title": title, "case": "", "error": reason, "facts": {}}
    cohort, case = chosen
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


def take_wish() -> None:
    """Choose the cases the viewer went to; note for which it wants the neighbours."""
    wish = st.session_state["niivue"].get("wish") or {}
    for side, case in wish.get("cases", {}).items():
        if cohort := st.session_state.get(f"{PREFIX}{side}_cohort"):
            st.session_state[f"{PREFIX}{side}_{cohort}"] = case
    st.session_state[AROUND] = wish.get("around")


def shown_cases(study: Study, panes: Sequence[dict[str, Any]]) -> list[Choice]:
    """Return the cases in the panes, each once."""
    found = dict.fromkeys((pane["cohort"], pane["case"]) for pane in panes if "cohort" in pane)
    return [(study.cohort(cohort), case) for cohort, case in found]


def show_facts(results: Results, shown: Sequence[Choice]) -> None:
    """List who the cases in the panes are and how their segmentation scored, a column each."""
    threshold = next(iter(results.quality["threshold"].dropna()), None)
    columns = {
        f"{case} · {look.short_label(cohort)}": facts_of(results, cohort, case, threshold) for cohort, case in shown
    }
    table = pd.DataFrame(columns).fillna("")
    table = table[(table != "").any(axis=1)].rename_axis("fact").reset_index()
    if len(table):
        look.show_table(table, {"fact": look.text("", width=170)} | {name: name for name in columns}, height="content")
    if threshold is not None:
        st.caption(f"QC scores go from 0 to 1, higher is better; the gate rejects below {threshold:.3f}.")


def facts_of(results: Results, cohort: Cohort, case: str, threshold: float | None) -> dict[str, str]:
    """Return what is known of a person, and the QC scores, in words."""
    person = next(c for c in cohort.cases if c.case_id == case)
    rows = results.cases[(results.cases["cohort"] == cohort.name) & (results.cases["case"] == case)]
    facts = {
        "Participant": person.participant,
        "Age": f"{person.age:.0f} years" if person.age is not None else "",
        "Sex": {"F": "female", "M": "male"}.get(person.sex, ""),
        "Site": person.site,
        "Notes": "; ".join(rows["notes"].dropna().astype(str)),
    }
    scores = qc_of(results, cohort.name)
    for name, value in scores.loc[case].items() if case in scores.index else ():
        fails = threshold is not None and value < threshold
        facts[f"QC {name}"] = f"{value:.3f}" + (" ✗ fails" if fails else "")
    return facts
