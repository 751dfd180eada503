"""SynthScope's dashboard: page setup, login, study picker, navigation. Run with ``streamlit run app.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from pages.headers import LoginForFiles, SecurityHeaders


def show_app() -> None:
    """Show the chosen page below the navigation."""
    # Not above: the server imports this file before the runtime that Streamlit's caches look for is there.
    from core import jobs
    from pages import access, selection, shared

    st.set_page_config(page_title="SynthScope", page_icon="assets/icon.svg", layout="wide")
    pages = {
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
    shared.name_study()
    page = st.navigation(pages)
    settings = shared.settings()
    access.require(settings)
    shared.arrive()
    shared.start_demo_once(settings)
    jobs.ensure_runner(settings)
    shared.pick_study(settings)
    selection.show_selected()
    access.show_user(settings)
    shared.land(page.title)
    page.run()


if __name__ == "__main__":  # for every browser
    show_app()
else:  # once, when the server imports this file
    app = st.App(__file__, middleware=[Middleware(SecurityHeaders), Middleware(LoginForFiles)])
