"""The form of a new study."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core.encoders import ENCODERS
from core.segmentation import SEGMENTERS
from core.study import StudySettings
from pages import shared

DEFAULTS = StudySettings()
COHORT_COLUMNS = {
    "name": shared.text("Name", "Name of the generator.", 150),
    "images": shared.text("Images", "Folder, glob such as out/*.nii.gz, or BIDS dataset.", 280),
    "raw": st.column_config.CheckboxColumn("Raw", help="Not yet in atlas space: preprocess first.", default=False),
    "orientation": shared.text("Orientation", "Axis codes such as RAS, only when the headers are wrong."),
    "participants": shared.text("participants.tsv", "Optional."),
    "volumes": shared.text("Volumes CSV", "Optional: SynthSeg's volumes; then nothing is segmented here."),
    "qc": shared.text("QC CSV", "Optional: SynthSeg's QC scores."),
}


def real_fields() -> dict[str, Any]:
    """Ask for the real cohort."""
    st.markdown("**Real cohort**")
    first, second = st.columns([3, 1], vertical_alignment="bottom")
    values: dict[str, Any] = {
        "images": first.text_input("Images", key="new_real", placeholder="/data/real or /data/real/*.nii.gz"),
        "raw": second.toggle("Raw scans: preprocess first", key="new_real_raw"),
    }
    columns = st.columns(4)
    labels = {
        "participants": "participants.tsv (optional)",
        "volumes": "SynthSeg volumes CSV (optional)",
        "qc": "SynthSeg QC CSV (optional)",
        "orientation": "Orientation (only if headers are wrong)",
    }
    for column, (key, label) in zip(columns, labels.items(), strict=True):
        values[key] = column.text_input(label, key=f"new_real_{key}")
    return values


def synthetic_fields() -> list[dict[str, Any]]:
    """Ask for the synthetic cohorts, one row each; rows without any text are left out."""
    st.markdown("**Synthetic cohorts**: one row for each generator")
    empty = pd.DataFrame([dict.fromkeys(COHORT_COLUMNS, "") | {"raw": False}])
    table = st.data_editor(
        empty, column_config=COHORT_COLUMNS, num_rows="dynamic", hide_index=True, key="new_synthetic"
    )
    rows = [{key: value for key, value in row.items() if pd.notna(value)} for row in table.to_dict("records")]
    return [row for row in rows if any(str(value).strip() for key, value in row.items() if key != "raw")]


def lacking(name: str, folder: str, real: dict[str, Any], synthetic: list[dict[str, Any]]) -> list[str]:
    """Return what a new study still needs."""
    fields = (("a name", name), ("a folder", folder), ("real images", real["images"]))
    missing = [label for label, value in fields if not value]
    names = [str(row.get("name", "")).strip() for row in synthetic]
    for number, row in enumerate(synthetic, 1):
        missing += [f"{key} of row {number}" for key in ("name", "images") if not str(row.get(key, "")).strip()]
    twice = sorted(name for name in set(names) if name and names.count(name) > 1)
    return missing + [f"another name for a second row {name!r}" for name in twice]


def setting_fields() -> StudySettings:
    """Ask for every choice that changes a number."""
    with st.expander("Settings"):
        encoders = st.multiselect(
            "Encoders", list(ENCODERS), list(DEFAULTS.encoders), format_func=lambda name: ENCODERS[name].label
        )
        downloads = [ENCODERS[name].label for name in encoders if ENCODERS[name].needs_download]
        if downloads:
            st.caption(f"Downloads weights on first use: {', '.join(downloads)}.")
        columns = st.columns(4)
        segmenter = columns[0].selectbox(
            "Segmentation", list(SEGMENTERS), format_func=lambda name: SEGMENTERS[name].label
        )
        rate = columns[1].number_input("Gate: real volumes that may fail (%)", 1.0, 50.0, 5.0, 1.0)
        fixed = columns[2].number_input("Fixed QC threshold (optional)", 0.0, 1.0, None, 0.01, help="The paper: 0.65.")
        seed = columns[3].number_input("Seed", 0, value=0)
        template = st.text_input("Template", DEFAULTS.template, help="embedded, or a template file for raw scans.")
    return StudySettings(
        encoders=tuple(encoders),
        segmenter=segmenter,
        qc_fail_rate=rate / 100,
        qc_threshold=fixed,
        template=template,
        seed=int(seed),
    )
