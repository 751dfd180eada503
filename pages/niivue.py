"""The viewer's panes: niivue, shipped inside nilearn, as a component of our own; files go over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import streamlit as st
from streamlit.runtime import get_instance

from core import anatomy
from pages import look

LOW, HIGH = 340, 760  # pixels of a row of panes, which fills what is left of the window


_panes = st.components.v2.component(
    "synthscope_viewer", js=look.asset("viewer/viewer.js"), css=look.asset("viewer/viewer.css")
)
_address = st.components.v2.component("synthscope_address", js=look.asset("viewer/address.js"))
_landing = st.components.v2.component("synthscope_landing", js=look.asset("viewer/landing.js"))
_sheet = st.components.v2.component(
    "synthscope_sheet", js=look.asset("viewer/sheet.js"), css=look.asset("viewer/sheet.css")
)


def serve(content: bytes, mimetype: str, place: str) -> str:
    """Return the address of some bytes: a hash of them, good as long as ``place`` on this page holds them."""
    address = get_instance().media_file_mgr.add(content, mimetype, f"viewer.{place}")
    base = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}{address}" if base else address


def show_panes(
    panes: Sequence[Mapping[str, Any]],
    *,
    study: str,
    view: str,
    token: int,
    bounds: Sequence[Mapping[str, float]],
    radiological: bool,
    on_wish: Callable[[], None],
) -> bool:
    """Show brains side by side; tell whether the browser can (it needs WebGL 2).

    Parameters
    ----------
    panes : sequence of mapping
        ``key``, ``title``, ``case``, ``image`` and ``labels`` (addresses), ``facts``, ``error``; ``verdict`` of the
        gate, whether it ``fails``, what else is ``known`` of it in words, ``space`` of volumes and its ``meaning``;
        ``cases`` that it steps through, ``previous`` and ``next`` pane.
    study : str
        Identity of the study, whose view is kept.
    view, token
        View asked for by an address, and a number that tells it from the last one; 0 when none was.
    bounds : sequence of mapping
        ``low`` and ``high`` world coordinate of each axis, mm.
    radiological : bool
        Show the patient's left on the right.
    on_wish : callable
        Called with the session state's ``niivue.wish``: ``cases`` wanted, by pane, and the cases ``around`` which the
        neighbours are.
    """
    data = {
        "library": serve(_library(), "text/javascript", "library"),
        "panes": list(panes),
        "labels": _labels(),
        "study": study,
        "view": view,
        "token": token,
        "bounds": list(bounds),
        "radiological": radiological,
        "heights": [LOW, HIGH],
    }
    shown = _panes(key="niivue", data=data, on_wish_change=on_wish, on_webgl_change=lambda: None)
    return shown.get("webgl") != "missing"


def keep_address(link: Mapping[str, str], step: int, arrival: int) -> None:
    """Have the browser keep this query, and the view of the panes, in its address.

    A higher ``step`` than before is one of the browser's history; ``arrival`` tells the last address that was taken.
    """
    _address(key="address", data={"link": dict(link), "step": step, "arrival": arrival})


def land(page: str, spot: str, number: float) -> None:
    """Have the browser bring a part of a page, by its anchor or key, into view: once for each ``number``, 0 for none.

    A page that is come to by the browser's Back shows where it was left.
    """
    _landing(key="landing", data={"page": page, "spot": spot, "number": number})


def show_sheet(
    cells: Sequence[Mapping[str, Any]],
    picture: Mapping[str, Any],
    *,
    letters: str,
    mirrored: bool,
    seen: float,
    on_open: Callable[[], None],
    on_mark: Callable[[], None],
    size: int = 92,
    groups: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Show many brains in one grid, in the order given; return what was clicked.

    Parameters
    ----------
    cells : sequence of mapping
        ``cohort``, ``case``, ``place`` in the picture, ``caption``, ``verdict`` of the gate, ``selected``.
    picture : mapping
        Of all of them: ``url``, ``width`` and ``height`` of a brain, ``columns``.
    letters : str
        Of the left and right edge of every brain.
    mirrored : bool
        Turn left and right.
    seen : float
        Number of the last click to select a brain that was answered.
    on_open, on_mark : callable
        Called when a brain is clicked (the session state's ``sheet.open``), or some to select them (``sheet.mark``).
    size : int
        Width of a brain, pixels.
    groups : sequence of str
        Headings: of each cell's ``group``. Without, the grid has none and scrolls by itself.
    """
    data = {"cells": list(cells), "picture": dict(picture), "letters": letters, "mirrored": mirrored}
    data |= {"seen": seen, "size": size, "groups": list(groups)}
    shown = _sheet(key="sheet", data=data, on_open_change=on_open, on_mark_change=on_mark)
    return dict(shown)


@st.cache_resource(show_spinner=False)
def _library() -> bytes:
    return files("nilearn").joinpath("_assets", "js", "niivue.umd.js").read_bytes()


@st.cache_data(show_spinner=False)
def _labels() -> list[list[Any]]:
    """Name in words, colour and name of each row of the label table."""
    table = anatomy.structures()
    cortex = table["name"].str.startswith("ctx-").map({True: " cortex: ", False: " "})
    said = (table["side"] + cortex + table["words"]).str.strip()
    return [list(row) for row in zip(said, *(table[c].tolist() for c in "rgb"), table["name"], strict=True)]
