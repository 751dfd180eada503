"""Reading room: blind rating and forced choice on the study's own volumes."""

from __future__ import annotations

import streamlit as st

from core import readings
from pages import access, reading_parts, shared

study, results = shared.current_study("Reading room", "Can you tell the real brains from the synthetic ones?")
known = readings.list_sessions(shared.settings(), study)
wanted = st.query_params.get(reading_parts.SESSION, "")
current = next((s for s in known if s.id == wanted and access.owns(s)), None)
if wanted and not current:
    reading_parts.say_unknown(wanted)
if current and not current.complete:
    reading_parts.show_panel(study, current)
    st.stop()
if current:
    st.success(f"{current.reader}, the session is complete: all {len(current.plan)} answers are saved.")
reading, said = st.tabs(["Read", "Results"], default="Results" if current else "Read")
with reading:
    reading_parts.show_entry(study, known)
with said:
    if reading_parts.may_see_results(study, known, current):
        reading_parts.show_results(study, results, known, current)
