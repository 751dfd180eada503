"""The paper's Table 1: filled by a study, and as printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core.encoders import ENCODERS
from core.metrics import METRICS
from core.study import Study
from core.workflows import comparisons as compare
from pages import access, look, reads
from pages.similarity_parts import SHORT_ENCODERS, encoder_label, sizes

CELL_LETTERS = 9  # of an interval on one line of a cell
COHORT_WIDTH, CELL_WIDTH = 122, 86  # pixels: three encoders and the volumes fit beside the sidebar on a small screen
ARROWS = {"lower": "↓", "higher": "↑", "match real": "→"}
FLOOR_ROW = "Floor: real against real"
FLOOR_NOTE = (
    "Last row, no score of a cohort: what real against real volumes give at the same N, as a perfect generator would; "
    '"a to b" is the range of the floors where the cohorts differ in N, no interval.'
)
DIFFERENCES = """
| | As published | Corrected |
|---|---|---|
| **FID** | Only the first half of the real volumes, each counted twice. The same people twice look less varied than they are. | Every real volume once. |
| **MMD** | Linear kernel on blocks of two volumes, so it sees little but the gap of the means, which FID holds already; the sum is divided by N − 1 instead of the number of blocks, which halves it. | Unbiased MMD² with an RBF kernel, on all pairs: sees any difference, and is 0 on average when there is none. |
| **Image MMD** | Blocks of two volumes, summed over voxels and not averaged: it grows with the grid, so grids cannot be compared. | {image} |
| **MS-SSIM** | Synthetic volumes against random real ones, the last scale counted four times; real pairs by another formula. The two are not the same measure. | Pairs within each cohort by the standard definition, so the number says how varied a cohort is, and real pairs give the value to match. |
"""  # noqa: E501


@st.cache_resource(max_entries=16, show_spinner=False)
def cached_cells(
    path: str,
    stamp: reads.Stamp,
    cohorts: tuple[str, ...],
    encoders: tuple[str, ...],
    variant: str,
    controls: tuple[str, ...],
) -> pd.DataFrame:
    """Return the cells of Table 1 filled by a study."""
    return compare.table_one(reads.cached_ranks(path, stamp), cohorts, encoders, variant, controls)


@st.cache_resource(show_spinner=False)
def cached_paper() -> pd.DataFrame:
    """Return the paper's Table 1, ranked."""
    return compare.paper_scores()


def show_table_one(
    cells: pd.DataFrame, names: Mapping[str, str], key: str, of: tuple[Any, ...], n_note: str = ""
) -> None:
    """Show scores in the layout of the paper's Table 1: encoders over metrics; ``of`` is what they change with."""
    table, config = reads.kept(key, of, lambda: table_one_texts(cells, names, n_note))
    st.dataframe(
        table,
        column_config=config,
        hide_index=True,
        row_height=look.TALL_ROW,
        height="content",
        placeholder="–",
        key=key,
        alt="Similarity scores in the layout of Table 1 of the paper: cohorts by encoder and metric",
    )


def table_one_texts(cells: pd.DataFrame, names: Mapping[str, str], n_note: str) -> tuple[pd.DataFrame, dict[int, Any]]:
    """Return the cells of Table 1 in words, and what its columns are."""
    rows = list(dict.fromkeys(cells["cohort"]))
    texts: dict[tuple[str, str], list[str]] = {("", "Cohort"): [names.get(name, name) for name in rows]}
    # by position, where 0 is the hidden index
    config: dict[int, Any] = {1: st.column_config.TextColumn("Cohort", width=COHORT_WIDTH, pinned=True)}
    for (encoder, column), part in cells.groupby(["encoder", "column"], sort=False):
        title = (encoder_label(encoder) if encoder else "volumes", str(column))
        part = part.set_index("cohort").loc[rows]
        texts[title] = [cell_text(str(cohort), row) for cohort, row in part.iterrows()]
        config[len(texts)] = column_of(part, n_note)
    return pd.DataFrame(texts), config


def column_of(part: pd.DataFrame, n_note: str) -> Any:
    """Describe one column of Table 1: name, direction; meaning, unit and N on hover."""
    metric, column, encoder = (str(part[name].iloc[0]) for name in ("metric", "column", "encoder"))
    known = METRICS.get(f"{metric}/published" if part["variant"].iloc[0] == "published" else metric)
    arrow = ARROWS[known.direction] if known else ""
    counts = part.dropna(subset=["n_synthetic"])
    about = n_note or (f"N: {sizes(counts)}" if len(counts) else "Not computed")
    meaning = f"{known.label}: {known.meaning} Unit: {known.unit or 'none'}. " if known else "No such estimate. "
    card = f"{ENCODERS[encoder].label}. " if encoder in ENCODERS else ""
    return look.text(f"{column.removeprefix('Image ')} {arrow}", f"{meaning}{card}{about}.", CELL_WIDTH)


def cell_text(cohort: str, row: pd.Series) -> str:
    """Return a cell of Table 1: value, mark of the best, interval beneath."""
    low, high = row["ci_low"], row["ci_high"]
    interval = look.bounds(low, high) if pd.notna(low) and low < high else ""
    if len(interval) > CELL_LETTERS:
        interval = interval.replace("–", "– ")  # a cell breaks at spaces alone
    if pd.isna(row["value"]):
        ends = dict.fromkeys(map(look.end, (low, high))) if interval else ()
        return " to ".join(ends) if cohort == compare.REAL else str(row["note"] or "")
    mark = "" if not row["best"] else " ☆" if row["tied"] else " ★"
    return f"{look.brief(row['value'])}{mark}" + (f" [{interval}]" if interval else "")


def show_study_table(cells: pd.DataFrame, study: Study, variant: str) -> None:
    """Show Table 1 filled by this study, with its download."""
    names = {cohort.name: look.short_label(cohort) for cohort in study.synthetic}
    names[compare.REAL] = FLOOR_ROW
    of = (*reads.basis(study), variant, study.settings.encoders)
    show_table_one(cells.assign(variant=variant), names, "table_one_study", of)
    lacking = [short for name, short in SHORT_ENCODERS.items() if name not in study.settings.encoders]
    note = f" The paper's {', '.join(lacking)} are not encoders of this study." if lacking else ""
    st.caption(
        "★ best; ☆ best, tied with others; a control takes neither; [95 % interval]. ↓ lower is better; → closest to "
        f"the real value is best. {FLOOR_NOTE}{note}"
    )
    access.download("Download as CSV", lambda: compare.table_one_csv(cells), f"table_1_{variant}.csv", "text/csv")


def show_paper_table() -> None:
    """Show Table 1 as printed in the paper, in the same form."""
    ranked = cached_paper()
    cohorts = list(dict.fromkeys(ranked["cohort"]))
    encoders = list(compare.PAPER_ENCODERS.values())
    cells = reads.kept("paper's cells", (), lambda: compare.table_one(ranked, cohorts, encoders, "published"))
    note = f"As printed, N = {compare.PAPER_N} each"
    show_table_one(cells.assign(variant="published"), {compare.REAL: "real MRIs"}, "table_one_paper", (), note)
    st.caption(
        "Wu et al., MICCAI 2024, numbers as printed. ★ best; ☆ best, tied by equal numbers: the paper gives no "
        "intervals and no floors. MS-SSIM of real MRIs is by another formula than that of the synthetic ones."
    )


def explain_variants(image_corrected: bool) -> None:
    """Explain in plain words how the published numbers differ from the corrected ones."""
    about = st.expander("What differs between *as published* and *corrected*", key="variants_differ", on_change="rerun")
    if about.open:
        image = "Unbiased MMD² on all pairs of volumes." if image_corrected else "No corrected estimate yet."
        about.markdown(DIFFERENCES.format(image=image))
