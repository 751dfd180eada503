"""Viewer: brains beside each other in one linked view, as a contact sheet, a sortable list, or slices for print."""

from __future__ import annotations

import streamlit as st

from pages import shared, sheet_parts, slices_parts, viewer_choices, viewer_parts

FORMS = (
    viewer_parts.show_brains,
    sheet_parts.show_contact_sheet,
    sheet_parts.show_case_list,
    slices_parts.show_slices,
)
SHOW = dict(zip(viewer_choices.FORMS, FORMS, strict=True))
CONVENTION_HELP = (
    "Off, neurological: the patient's left is on the left. On, radiological: the patient's left is on the right, as if "
    "seen from the feet. L and R are always shown."
)

study, results = shared.current_study("Viewer", "")  # no words above the brains that are not needed
for message in viewer_choices.arrive(study):
    st.warning(message, icon=":material/link_off:")
with st.container(gap="xsmall"):  # at 720 pixels a brain needs every line
    left, right = st.columns([3, 1], vertical_alignment="center")
    st.session_state.setdefault("viewer_show", "Brains")
    show = left.segmented_control(
        "Show",
        list(SHOW),
        key="viewer_show",
        required=True,
        label_visibility="collapsed",
        on_change=viewer_choices.make_step,
    )
    radiological = right.toggle(
        "Radiological", key="viewer_radiological", help=CONVENTION_HELP, on_change=viewer_choices.make_step
    )
    viewer_choices.enter(str(show))
    SHOW[str(show)](study, results, radiological)
