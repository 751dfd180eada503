"""Viewer: a real and a synthetic brain at the same position, with their segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st
from niivue_component import niivue_viewer

from core import anatomy, plots
from core.errors import InputError
from core.study import Cohort, Study
from core.workflows import Results
from core.workflows.results import qc_of
from pages import shared

NIIVUE_HEIGHT = 480


def take_selection(study: Study) -> None:
    """Point the widgets to the case that another page, or the address, asks for."""
    cohort = st.session_state.pop(shared.SELECTED_COHORT, None) or st.query_params.get("cohort", "")
    case = st.session_state.pop(shared.SELECTED_CASE, None) or st.query_params.get("case", "")
    beside = st.session_state.pop(shared.SELECTED_BESIDE, None)
    st.query_params.clear()
    for name, wanted in [(cohort, case), *([beside] if beside else [])]:
        for found in study.cohorts:
            if found.name == name and wanted in [c.case_id for c in found.cases]:
                side = "synthetic" if found.role == "synthetic" else "real"  # training volumes are real ones
                st.session_state[f"viewer_{side}_cohort"] = name
                st.session_state[f"viewer_{side}_{name}"] = wanted


def step(key: str, cases: Sequence[str], by: int) -> None:
    """Move a selection to the next or previous case."""
    st.session_state[key] = cases[(cases.index(st.session_state[key]) + by) % len(cases)]


def choose(study: Study, side: str, cohorts: Sequence[Cohort]) -> tuple[Cohort, str] | None:
    """Let the user choose a cohort and one of its cases."""
    cohorts = [cohort for cohort in cohorts if cohort.cases]
    if not cohorts:
        st.info(f"No {side} volume yet.")
        return None
    names = {cohort.name: cohort for cohort in cohorts}
    key = f"viewer_{side}_cohort"
    if st.session_state.get(key) not in names:
        st.session_state[key] = cohorts[0].name
    name = st.selectbox(f"{side.capitalize()} cohort", list(names), key=key, format_func=lambda n: names[n].label)
    cases = [case.case_id for case in names[name].cases]
    key = f"viewer_{side}_{name}"
    if st.session_state.get(key) not in cases:
        st.session_state[key] = cases[0]
    second, before, after = st.columns([6, 1, 1], vertical_alignment="bottom")
    case = second.selectbox(f"{side.capitalize()} case ({len(cases)})", cases, key=key)
    before.button(
        "",
        icon=":material/chevron_left:",
        width="stretch",
        key=f"{side}_-",
        help="Previous",
        on_click=step,
        args=(key, cases, -1),
    )
    after.button(
        "",
        icon=":material/chevron_right:",
        width="stretch",
        key=f"{side}_+",
        help="Next",
        on_click=step,
        args=(key, cases, 1),
    )
    return names[name], str(case)


def choose_position(study: Study) -> tuple[list[float], float]:
    """Return the position in mm shared by both brains, and the opacity of the segmentation."""
    grid, position = study.grid, []
    columns = st.columns(4)
    ends = (("x", "left", "right"), ("y", "posterior", "anterior"), ("z", "inferior", "superior"))
    for axis, (letter, low_end, high_end) in enumerate(ends):
        low = grid.origin[axis]
        high = low + (grid.shape[axis] - 1) * grid.spacing
        start = low + grid.shape[axis] // 2 * grid.spacing
        label = f"{letter} (mm): {low_end} → {high_end}"
        position.append(
            columns[axis].slider(label, low, high, start, grid.spacing, format="%.1f", key=f"viewer_{letter}")
        )
    opacity = columns[3].slider("Segmentation overlay", 0.0, 1.0, 0.0, 0.05, key="viewer_opacity", help="0 hides it.")
    return position, opacity


def show_case(study: Study, results: Results, cohort: Cohort, case: str, position: list[float], opacity: float) -> None:
    """Draw the three planes of one case and what is known about it."""
    version = shared.case_version(study, results, cohort.name, case)
    try:
        volume, labels = shared.cached_case(str(study.path), cohort.name, case, version)
    except InputError as error:
        shared.show_error(error)
        return
    table = anatomy.structures()
    colours = {int(row.id): (int(row.r), int(row.g), int(row.b)) for row in table.itertuples()}
    figure = plots.triplanar(
        volume.data,
        volume.affine,
        position,
        labels=labels.data if labels and opacity else None,
        label_colours=colours,
        opacity=opacity,
        height=410,
    )
    figure.update_traces(zsmooth="fast" if st.session_state.get("viewer_smooth", True) else False)
    st.markdown(f"**{cohort.label}** · {case}")
    shared.show_figure(figure, key=f"planes_{cohort.role}", alt=f"Three planes of {case}")
    if opacity and labels is None:
        st.caption("Not segmented yet, or by an older version of the engine: evaluate the study.")
    show_facts(results, cohort, case, volume.notes)


def show_facts(results: Results, cohort: Cohort, case: str, notes: Sequence[str]) -> None:
    """Say who the case is and how its segmentation scored."""
    person = next(c for c in cohort.cases if c.case_id == case)
    facts = {
        "participant": person.participant,
        "age": f"{person.age:.0f} years" if person.age is not None else "",
        "sex": {"F": "female", "M": "male"}.get(person.sex, ""),
        "site": person.site,
        "notes": "; ".join(notes),
    }
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


@st.fragment
def show_planes(study: Study, results: Results, chosen: Sequence[tuple[Cohort, str]]) -> None:
    """Show both brains; moving a slider redraws only this part."""
    position, opacity = choose_position(study)
    first, second, _ = st.columns([1, 1, 2])
    beside = first.toggle("Side by side", key="viewer_beside", help="Smaller slices, left real and right synthetic.")
    second.toggle("Smooth", value=True, key="viewer_smooth", help="Interpolate between voxels; off shows each voxel.")
    places = st.columns(len(chosen)) if beside else [st.container() for _ in chosen]
    for place, (cohort, case) in zip(places, chosen, strict=True):
        with place:
            show_case(study, results, cohort, case, position, opacity)
    st.caption(
        "L, R: the patient's left and right; A, P: anterior, posterior; S, I: superior, inferior. "
        "Black is −1 (background), white is 1."
    )


def show_interactive(study: Study, results: Results, chosen: Sequence[tuple[Cohort, str]]) -> None:
    """Show both cases in the WebGL viewer."""
    overlay = st.toggle("Segmentation overlay", key="viewer_niivue_overlay")
    for place, (cohort, case) in zip(st.columns(len(chosen)), chosen, strict=True):
        with place:
            st.markdown(f"**{cohort.label}** · {case}")
            show_niivue(study, results, cohort, case, overlay)
    st.caption(
        "Drag to move the crosshair, scroll to change slice. The patient's left is on the left. Overlay colours only "
        "tell structures apart; those of *Three planes* are FreeSurfer's."
    )


def show_niivue(study: Study, results: Results, cohort: Cohort, case: str, overlay: bool) -> None:
    """Show one case in the WebGL viewer."""
    version = shared.case_version(study, results, cohort.name, case)
    try:
        image, labels = shared.cached_nifti(str(study.path), cohort.name, case, version)
    except InputError as error:
        shared.show_error(error)
        return
    if overlay and labels is None:
        st.caption("Not segmented yet, or by an older version of the engine: evaluate the study.")
    layers = [{"data": labels, "name": "labels.nii.gz", "colormap": "hsv", "opacity": 0.45}] if labels else []
    niivue_viewer(
        nifti_data=image,
        filename=f"{case}.nii.gz",
        overlays=layers if overlay else None,
        height=NIIVUE_HEIGHT,
        settings={"crosshair": True, "radiological": False},
        styled=False,
        update_interval_ms=None,
        key=f"niivue_{cohort.name}_{case}",  # a new one for each case: the viewer adds a second image to the first
    )


study, results = shared.current_study("Viewer", "A real and a synthetic brain at the same position.")
take_selection(study)
left, right = st.columns(2)
with left:
    real = choose(study, "real", [c for c in study.cohorts if c.role != "synthetic"])
with right:
    synthetic = choose(study, "synthetic", [c for c in study.cohorts if c.role == "synthetic"])
pair = [side for side in (real, synthetic) if side]
planes, interactive = st.tabs(["Three planes", "Interactive 3D"], on_change="rerun", key="viewer_tab")
if planes.open:
    with planes:
        show_planes(study, results, pair)
if interactive.open:
    with interactive:
        show_interactive(study, results, pair)
