"""SynthScope's dashboard: page setup, study picker, navigation. Run with ``streamlit run app.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import jobs
from pages import selection, shared

st.set_page_config(page_title="SynthScope", page_icon="assets/icon.svg", layout="wide")

PAGES = {
    "Results": [
        st.Page("pages/overview.py", title="Overview", icon=":material/summarize:", default=True),
        st.Page("pages/viewer.py", title="Viewer", icon=":material/view_in_ar:"),
        st.Page("pages/similarity.py", title="Similarity", icon=":material/compare_arrows:"),
        st.Page("pages/quality.py", title="Quality", icon=":material/verified:"),
        st.Page("pages/anatomy.py", title="Anatomy", icon=":material/neurology:"),
        st.Page("pages/reading_room.py", title="Reading room", icon=":material/visibility_off:"),
        st.Page("pages/report.py", title="Report", icon=":material/slideshow:"),
    ],
    "Reference": [st.Page("pages/paper.py", title="The paper's tables", icon=":material/article:")],
    "Manage": [
        st.Page("pages/generators.py", title="Generators", icon=":material/model_training:"),
        st.Page("pages/studies.py", title="Studies", icon=":material/folder_open:"),
        st.Page("pages/jobs.py", title="Jobs", icon=":material/pending_actions:"),
    ],
}

st.logo("assets/logo.svg", size="large", icon_image="assets/icon.svg")
st.html(Path("assets/app.css"))
page = st.navigation(PAGES)
shared.arrive()
settings = shared.settings()
shared.start_demo_once(settings)
jobs.ensure_runner(settings)
shared.pick_study(settings)
selection.show_selected()
page.run()
