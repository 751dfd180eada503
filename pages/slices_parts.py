"""Slices drawn by plotly: for print, and for browsers without WebGL 2."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core import anatomy, plots
from core.errors import InputError
from core.study import Cohort, Study
from core.workflows import Results
from pages import look, reads, viewer_choices


@st.fragment
def show_slices(study: Study, results: Results, radiological: bool) -> None:
    """Show three planes of a real and a synthetic case; another case redraws only this part."""
    pair = viewer_choices.choose_pair(study)
    show_planes(study, results, list(pair.values()), radiological)
    viewer_choices.keep(study)


def show_planes(study: Study, results: Results, chosen: Sequence[tuple[Cohort, str]], radiological: bool) -> None:
    """Show the brains at one position."""
    if not chosen:
        return
    position, opacity = choose_position(study)
    first, second, _ = st.columns([1, 1, 2])
    beside = first.toggle("Side by side", key="viewer_beside", help="Smaller slices, left real and right synthetic.")
    st.session_state.setdefault("viewer_smooth", True)
    second.toggle("Smooth", key="viewer_smooth", help="Interpolate between voxels; off shows each voxel.")
    places = st.columns(len(chosen)) if beside else [st.container() for _ in chosen]
    for index, (place, (cohort, case)) in enumerate(zip(places, chosen, strict=True)):
        with place:
            show_case(study, results, cohort, case, position, opacity, radiological, key=f"planes_{index}")
    st.caption(
        "L, R: the patient's left and right; A, P: anterior, posterior; S, I: superior, inferior. "
        "Black is −1 (background), white is 1."
    )


def choose_position(study: Study) -> tuple[list[float], float]:
    """Return the position in mm shared by both brains, and the opacity of the segmentation."""
    grid, position = study.grid, []
    columns = st.columns(4)
    ends = (("x", "left", "right"), ("y", "posterior", "anterior"), ("z", "inferior", "superior"))
    for axis, (letter, low_end, high_end) in enumerate(ends):
        low = grid.origin[axis]
        high = low + (grid.shape[axis] - 1) * grid.spacing
        key = f"viewer_{letter}"
        start = st.session_state.get(key, low + grid.shape[axis] // 2 * grid.spacing)
        st.session_state[key] = min(max(start, low), high)
        label = f"{letter} (mm): {low_end} → {high_end}"
        position.append(columns[axis].slider(label, low, high, step=grid.spacing, format="%.1f", key=key))
    st.session_state.setdefault("viewer_opacity", 0.0)
    opacity = columns[3].slider("Segmentation overlay", 0.0, 1.0, step=0.05, key="viewer_opacity", help="0 hides it.")
    return position, opacity


def show_case(
    study: Study,
    results: Results,
    cohort: Cohort,
    case: str,
    position: list[float],
    opacity: float,
    radiological: bool,
    *,
    key: str,
) -> None:
    """Draw the three planes of one case."""
    version = reads.case_version(study, results, cohort.name, case)
    try:
        volume, labels = reads.cached_case(str(study.path), cohort.name, case, version)
    except InputError as error:
        look.show_error(error)
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
        radiological=radiological,
        height=380,
    )
    figure.update_traces(zsmooth="fast" if st.session_state["viewer_smooth"] else False)
    st.markdown(f"**{cohort.label}** · {case}")
    look.show_figure(figure, key=key, alt=f"Three planes of {case}")
    if opacity and labels is None:
        st.caption("Not segmented yet, or by an older version of the engine: evaluate the study.")
