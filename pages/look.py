"""How things look on every page: names and colours of cohorts, numbers, tables, figures and messages."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core import plots
from core.errors import SynthScopeError
from core.study import Cohort, Study
from pages import reads

ASSETS = Path(__file__).resolve().parent.parent / "assets"
LABEL_WIDTH = 36  # characters of a cohort's label on one line of an axis
FLAT_ROW = 21  # pixels: about that of a heatmap row
TALL_ROW = 66  # pixels: above 64 long text wraps
COHORT_WIDTH = 260  # pixels of a table's cohort column
TEXT_COLOURS = {"light": "#0B0F14", "dark": "#E8EBEE"}  # those of .streamlit/config.toml
GOOD_END = {"lower": "↓ lower is better", "higher": "↑ higher is better", "match real": "→ closest to the floor"}
SIGN = "0 is best. Positive: larger in real brains. Negative: larger in synthetic brains."
NOISE_HELP = (
    "How far the segmentation engine alone can move d: the same anatomy rendered again. The largest over the cohorts; "
    "a |d| below it may be the engine, not anatomy. –: not known for this engine."
)
FLOOR_HELP = "Real volumes against real volumes at the same N: what a perfect generator would score."
TOOLBAR = 26  # pixels: height of plotly's toolbar
FEW_COHORTS = 4  # as many fit into half a page with their numbers


def asset(name: str) -> str:
    """Return the text of a file of the components, by its path below assets/."""
    return (ASSETS / name).read_text(encoding="utf-8")


def labels_of(cohorts: Iterable[Cohort]) -> dict[str, str]:
    """Return the name shown for each cohort: simulated and control cohorts are always called so."""
    return {cohort.name: cohort.label for cohort in cohorts}


def short_label(cohort: Cohort) -> str:
    """Return a cohort's name and what kind it is, where there is no room for more."""
    kind = cohort.origin.partition(":")[0].partition(",")[0]
    return f"{cohort.name} ({kind})" if kind else cohort.name


def wrapped(label: str, width: int = LABEL_WIDTH) -> str:
    """Break a cohort's label into lines, for the axis of a figure."""
    return "<br>".join(textwrap.wrap(label, width))


def colours_of(study: Study) -> dict[str, str]:
    """Return the colour of each cohort of the study, by the name shown: whole, short, or wrapped."""
    names = labels_of(study.cohorts)
    colours = {names[name]: colour for name, colour in plots.cohort_colours(names).items()}
    short = {short_label(cohort): colours[cohort.label] for cohort in study.cohorts}
    return colours | {wrapped(label): colour for label, colour in colours.items()} | short


def words_of(point: Mapping[str, Any]) -> list[Any]:
    """Return the customdata of a point chosen in a plotly chart."""
    data = point.get("customdata", [])
    return [data[key] for key in sorted(data)] if isinstance(data, Mapping) else list(data)


def show_error(error: SynthScopeError) -> None:
    """Show an error in its three parts: what is wrong, where, and what to do."""
    word = error.what.split(" ")[0]  # a key, as settings.seed, stays as it is written
    what = error.what[:1].upper() + error.what[1:] if word.strip(",.:;").isalpha() else error.what
    lines = [f"**{what}**", f"Where: `{error.where}`" if error.where else "", error.remedy]
    st.error("\n\n".join(line for line in lines if line))


def show_tabs(tabs: Mapping[str, tuple[Callable[[], None], tuple[str, ...]]], key: str) -> None:
    """Draw the open tab alone; choices made on the others, whose keys begin as said, are kept."""
    for tab, (show, keys) in zip(st.tabs(list(tabs), key=key, on_change="rerun"), tabs.values(), strict=True):
        if tab.open:
            with tab:
                show()
        else:
            for held in [name for name in st.session_state if str(name).startswith(keys)]:
                st.session_state[held] = st.session_state[held]


def show_words(rows: Sequence[Sequence[str]], numbers: int) -> None:
    """Show a small table of words, the first row its head, the last ``numbers`` columns centred; cells are markdown."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    ends = [*("---" for _ in head[numbers:]), *(":-:" for _ in head[:numbers])]
    st.markdown("\n".join(f"| {' | '.join(row)} |" for row in (head, ends, *body)), unsafe_allow_html=True)


def number(label: str, help_text: str = "", fmt: str = "%.3g", width: Any = None) -> Any:
    """Describe a column of numbers."""
    return st.column_config.NumberColumn(label, help=help_text or None, format=fmt, width=width)


def text(label: str, help_text: str = "", width: Any = None) -> Any:
    """Describe a column of words."""
    return st.column_config.TextColumn(label, help=help_text or None, width=width)


def show_table(table: pd.DataFrame, columns: Mapping[str, Any], *, height: Any = "auto", **options: Any) -> Any:
    """Show a table without its index; ``columns`` describes headings, units, formats and help."""
    config = {name: columns.get(name, name.replace("_", " ").capitalize()) for name in table.columns}
    return st.dataframe(table, column_config=config, hide_index=True, height=height, placeholder="–", **options)


def show_figure(figure: Any, key: str, **options: Any) -> Any:
    """Show a figure in the text colour of the page's theme."""
    return show_dressed(dressed(figure, theme()), key, **options)


def show_kept(key: str, of: tuple[Any, ...], build: Callable[[], Any], **options: Any) -> Any:
    """Show a figure that is built once for the results and choices in ``of``, see `kept`."""
    return show_dressed(kept_figure(key, of, build), key, **options)


def kept_figure(key: str, of: tuple[Any, ...], build: Callable[[], Any]) -> Any:
    """Return a figure for the page's theme, built once, see `kept`."""
    colours = theme()
    return reads.kept(key, (*of, colours), lambda: dressed(build(), colours))


def show_dressed(figure: Any, key: str, **options: Any) -> Any:
    """Show a figure as it is."""
    return st.plotly_chart(figure, theme=None, key=key, config={"displaylogo": False}, **options)


def theme() -> str:
    """Return the theme of the page, "dark" or "light"."""
    return "dark" if st.context.theme.type == "dark" else "light"


def dressed(figure: Any, theme: str) -> Any:
    """Give a figure the text colour of a theme, and plotly's toolbar a strip of its own above all that it says."""
    colour, layout = TEXT_COLOURS[theme], figure.layout
    return figure.update_layout(
        height=layout.height + TOOLBAR,
        margin_t=layout.margin.t + TOOLBAR,
        font={"family": "'Source Sans', sans-serif", "color": colour, "size": 13},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": colour, "activecolor": colour},
    )


def brief(value: float) -> str:
    """Return a number with three digits, or all before the point of a large one."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def end(value: float, digits: int = 2) -> str:
    """Return an end of an interval with two digits, or all before the point."""
    return f"{value:.{digits}g}" if abs(value) < 10 else f"{value:,.0f}"


def bounds(low: float, high: float) -> str:
    """Return an interval, with as many digits as tell its ends apart, four at most."""
    digits = next((n for n in (2, 3) if end(low, n) != end(high, n)), 4)
    return f"{end(low, digits)}–{end(high, digits)}"


def clock(seconds: float | None) -> str:
    """Return a time of day with its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def span(seconds: float) -> str:
    """Return a duration in the unit a reader would choose."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
