"""What the results of a study lack since the study was changed, in words."""

from __future__ import annotations

from typing import Any

import pandas as pd

from core.encoders import ENCODERS
from core.metrics import label_named
from core.segmentation import SEGMENTERS
from core.settings import Settings
from core.study import Cohort, Study
from core.workflows.results import read_record
from core.workflows.run import reading_of

SETTINGS = {  # what a setting is called, and what its change costs
    "encoders": ("Encoders", "features and scores under those that are new"),
    "metrics": ("Metrics", "the scores that are new"),
    "segmenter": ("Segmentation", "every volume is segmented again"),
    "qc_fail_rate": ("Volumes that may fail the gate", "the gate, and the effect sizes behind it"),
    "qc_threshold": ("QC threshold", "the gate, and the effect sizes behind it"),
    "template": ("Template", "raw scans are brought to it again"),
    "seed": ("Seed", "scores and intervals; features and segmentations are known"),
    "n_boot": ("Bootstrap samples", "scores and intervals; features and segmentations are known"),
}


def to_compute(settings: Settings, study: Study) -> list[str]:
    """Return what the next evaluation has to do, a line each; [] when the results are those of the study as it is.

    Whatever is not named, and every volume seen before, comes from the cache.
    """
    record, cases = read_record(settings, study.path)
    if not record:
        return ["Everything: the study has not been evaluated yet."]
    lines = [] if record.get("complete") else ["What is missing: the last evaluation did not end."]
    if record.get("grid", study.grid.name) != study.grid.name:
        lines.append(f"Grid {record['grid']} → {study.grid.name}: everything.")
    return lines + _of_cohorts(study, record, cases) + _of_settings(study, record.get("settings", {}))


def _of_cohorts(study: Study, record: dict[str, Any], evaluated: pd.DataFrame) -> list[str]:
    before = {item["name"]: item for item in record.get("cohorts", [])}
    known = {name: _known_cases(evaluated[evaluated["cohort"] == name]) for name in before}
    gone = [name for name in before if name not in {cohort.name for cohort in study.cohorts}]
    lines = []
    for cohort in study.cohorts:
        cases = _cases(cohort)
        if cohort.name in before:
            came, went = len(cases.keys() - known[cohort.name]), len(known[cohort.name].keys() - cases)
            read = reading_of(cohort, study.path)
            if came or went:
                lines.append(f"{cohort.label}: {came} volumes came, {went} went.")
            elif cases != known[cohort.name] or before[cohort.name].get("read", read) != read:
                lines.append(f"{cohort.label}: read in another way, or with other tables.")
        elif former := next((name for name in gone if known[name] == cases), None):
            gone.remove(former)
            lines.append(f"{cohort.label}: was called {former}; its volumes are known.")
        else:
            lines.append(f"{cohort.label}: {len(cases)} volumes of a new cohort.")
    return lines + [
        f"{name}: left the study; its numbers go, its files and what is known of them stay." for name in gone
    ]


def _of_settings(study: Study, before: dict[str, Any]) -> list[str]:
    now = study.settings.model_dump(mode="json")
    changed = [key for key in SETTINGS if before.get(key, now[key]) != now[key]]
    return [
        f"{SETTINGS[key][0]} {_words(key, before[key])} → {_words(key, now[key])}: {SETTINGS[key][1]}."
        for key in changed
    ]


def _words(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(_words(key, one) for one in value) or "all"
    if key == "encoders" and value in ENCODERS:
        return ENCODERS[value].label
    if key == "segmenter" and value in SEGMENTERS:
        return SEGMENTERS[value].label
    return label_named(value) if key == "metrics" else str(value)


def _cases(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """Return path to what is known of the person, for every file of a cohort."""
    people: dict[str, tuple[str, ...]] = {
        str(c.path): (c.participant, c.sex, c.site, "" if c.age is None else f"{c.age:.7g}") for c in cohort.cases
    }
    return people | {item.path: ("", "", "", "") for item in cohort.rejected}


def _known_cases(rows: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return the same for a cohort as it was evaluated."""
    ages = ["" if pd.isna(age) else f"{float(age):.7g}" for age in rows["age"]]
    people = rows[["participant", "sex", "site"]].fillna("").astype(str).itertuples(index=False)
    return {path: (*facts, age) for path, facts, age in zip(rows["path"], people, ages, strict=True)}
