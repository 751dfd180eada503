"""The form of a study, new or known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core.encoders import ENCODERS
from core.metrics import METRICS, label_named
from core.segmentation import SEGMENTERS
from core.study import CohortSpec, StudySettings, StudySpec
from pages import look

BLANK = CohortSpec(images="")
NEW = StudySpec(name="", real=BLANK)
LARGEST = 2**53 - 1  # whole number that a browser can hold
ORIENTATION = "Axis codes such as RAS, only when the headers are wrong."
COHORT_COLUMNS = {
    "name": look.text("Name", "Name of the generator.", 150),
    "images": look.text("Images", "Folder, glob such as out/*.nii.gz, or BIDS dataset.", 280),
    "raw": st.column_config.CheckboxColumn("Raw", help="Not yet in atlas space: preprocess first.", default=False),
    "orientation": look.text("Orientation", ORIENTATION),
    "participants": look.text("participants.tsv", "Optional."),
    "volumes": look.text("Volumes CSV", "Optional: SynthSeg's volumes; then nothing is segmented here."),
    "qc": look.text("QC CSV", "Optional: SynthSeg's QC scores."),
}


def study_fields(spec: StudySpec, key: str) -> dict[str, Any]:
    """Ask for cohorts and settings; return what study.toml says of them.

    Parameters
    ----------
    spec : StudySpec
        What the fields hold at first.
    key : str
        Begins the keys of all fields.

    Returns
    -------
    dict
        ``real``, ``synthetic`` (a list of rows), ``training`` (None without a field filled in), ``settings``.
    """
    st.markdown("**Real cohort**")
    real = cohort_fields(spec.real, f"{key}_real")
    synthetic = synthetic_fields(spec.synthetic, f"{key}_synthetic")
    with st.expander("Settings"):
        settings = setting_fields(spec.settings, key)
    with st.expander("Advanced: training cohort, metrics, bootstrap samples"):
        st.markdown(
            "**Training cohort** (optional): what the generators saw. Samples are then compared with it for copies."
        )
        training = cohort_fields(spec.training or BLANK, f"{key}_training")
        settings |= advanced_fields(spec.settings, key)
    return {"real": real, "synthetic": synthetic, "training": training if any(training.values()) else None,
            "settings": settings}  # fmt: skip


def cohort_fields(cohort: CohortSpec, key: str) -> dict[str, Any]:
    """Ask for the real or the training cohort."""
    first, second = st.columns([3, 1], vertical_alignment="bottom")
    place = "/data/real or /data/real/*.nii.gz"
    values: dict[str, Any] = {
        "images": first.text_input("Images", cohort.images, key=key, placeholder=place).strip(),
        "raw": second.toggle("Raw scans: preprocess first", cohort.raw, key=f"{key}_raw"),
    }
    columns = st.columns(4)
    labels = {
        "participants": "participants.tsv (optional)",
        "volumes": "SynthSeg volumes CSV (optional)",
        "qc": "SynthSeg QC CSV (optional)",
        "orientation": "Orientation (optional)",
    }
    for column, (name, label) in zip(columns, labels.items(), strict=True):
        about = ORIENTATION if name == "orientation" else None
        values[name] = column.text_input(label, getattr(cohort, name), key=f"{key}_{name}", help=about).strip()
    return values


def synthetic_fields(cohorts: Mapping[str, CohortSpec], key: str) -> list[dict[str, Any]]:
    """Ask for the synthetic cohorts, one row each; rows without any text are left out."""
    st.markdown("**Synthetic cohorts**: one row for each generator")
    rows = [{"name": name, **cohort.model_dump()} for name, cohort in cohorts.items()]
    table = st.data_editor(
        pd.DataFrame(rows or [{"name": "", **BLANK.model_dump()}], columns=list(COHORT_COLUMNS)),
        column_config=COHORT_COLUMNS,
        num_rows="dynamic",
        hide_index=True,
        key=key,
    )
    st.caption(
        "Add a row at the foot; rename in the cell; to take rows out, tick them at their left and press the bin: no "
        "file is deleted. Controls are rows too, and other real scans (a second holdout), judged as generators are."
    )
    found = [{name: value for name, value in row.items() if pd.notna(value)} for row in table.to_dict("records")]
    return [row for row in found if any(str(value).strip() for name, value in row.items() if name != "raw")]


def lacking(
    name: str,
    folder: str,
    real: Mapping[str, Any],
    synthetic: list[dict[str, Any]],
    training: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return what a study still needs."""
    fields = [("a name", name), ("a folder", folder), ("real images", real["images"])]
    fields += [("training images", training["images"])] if training else []
    missing = [label for label, value in fields if not value]
    names = [str(row.get("name", "")).strip() for row in synthetic]
    for number, row in enumerate(synthetic, 1):
        missing += [f"{key} of row {number}" for key in ("name", "images") if not str(row.get(key, "")).strip()]
    twice = sorted(name for name in set(names) if name and names.count(name) > 1)
    return missing + [f"another name for a second row {name!r}" for name in twice]


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the synthetic cohorts as study.toml holds them."""
    return {str(row["name"]).strip(): {key: row[key] for key in row if key != "name"} for row in rows}


def setting_fields(settings: StudySettings, key: str) -> dict[str, Any]:
    """Ask for the choices that most studies make."""
    encoders = st.multiselect(
        "Encoders",
        list(ENCODERS),
        [name for name in settings.encoders if name in ENCODERS],
        format_func=lambda name: ENCODERS[name].label,
        key=f"{key}_encoders",
    )
    downloads = [ENCODERS[name].label for name in encoders if ENCODERS[name].needs_download]
    if downloads:
        st.caption(f"Downloads weights on first use: {', '.join(downloads)}.")
    columns, engines = st.columns(4), list(SEGMENTERS)
    at = engines.index(settings.segmenter) if settings.segmenter in engines else 0
    shown = round(100 * settings.qc_fail_rate, 6)
    segmenter = columns[0].selectbox(
        "Segmentation", engines, at, format_func=lambda name: SEGMENTERS[name].label, key=f"{key}_segmenter"
    )
    rate = columns[1].number_input("Gate: real volumes that may fail (%)", 0.0, 100.0, shown, 1.0, key=f"{key}_rate")
    fixed = columns[2].number_input(
        "Fixed QC threshold (optional)", 0.0, 1.0, settings.qc_threshold, 0.01, help="The paper: 0.65.", key=f"{key}_qc"
    )
    seed: int = settings.seed
    if seed <= LARGEST:
        seed = columns[3].number_input("Seed", 0, LARGEST, seed, key=f"{key}_seed")
    template = st.text_input(
        "Template", settings.template, help="embedded, or a template file for raw scans.", key=f"{key}_template"
    )
    return {
        "encoders": encoders,
        "segmenter": segmenter,
        "qc_fail_rate": settings.qc_fail_rate if rate == shown else rate / 100,
        "qc_threshold": fixed,
        "template": template.strip(),
        "seed": seed,
    }


def advanced_fields(settings: StudySettings, key: str) -> dict[str, Any]:
    """Ask which metrics to compute, and with how many bootstrap samples."""
    first, second = st.columns([3, 1])
    names = list(dict.fromkeys(metric.name for metric in METRICS.values()))
    chosen = [name for name in settings.metrics if name in names]
    metrics = first.multiselect(
        "Metrics", names, chosen, format_func=label_named, key=f"{key}_metrics", placeholder="All metrics"
    )
    n_boot = second.number_input(
        "Bootstrap samples", 0, 100_000, settings.n_boot, 100, key=f"{key}_boot", help="Behind every 95 % interval."
    )
    return {"metrics": metrics if set(metrics) < set(names) else [], "n_boot": n_boot}
