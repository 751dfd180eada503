"""What the results of a study lack since the study was changed, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from core.encoders import ENCODERS
from core.metrics import label_named
from core.segmentation import SEGMENTERS
from core.settings import Settings
from core.study import Cohort, Study
from core.workflows.results import read_record
from core.workflows.run import reading_of

Cases = Mapping[str, tuple[str, ...]]  # path to what is known of the person
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
    now = {cohort.name: _cases(cohort) for cohort in study.cohorts}
    formers = _former_names(now, known)
    lines = []
    for cohort in study.cohorts:
        if (former := formers.get(cohort.name)) is None:
            lines.append(f"{cohort.label}: {len(now[cohort.name])} volumes of a new cohort.")
            continue
        read = reading_of(cohort, study.path)
        change = _change(known[former], now[cohort.name], before[former].get("read", read) != read)
        if former != cohort.name:
            change = f"was called {former}; {change or 'its volumes are known'}"
        lines += [f"{cohort.label}: {change}."] if change else []
    return lines + [
        f"{name}: left the study; its numbers go, its files and what is known of them stay."
        for name in before
        if name not in formers.values()
    ]


def _former_names(now: Mapping[str, Collection[str]], before: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return what cohorts, given as paths, were called: one of another name shares half of its files, or more."""
    formers = {name: name for name in now if name in before}
    pairs = [(name, other) for name in now if name not in formers for other in before if other not in formers]
    shared = {(name, other): len(set(now[name]) & set(before[other])) for name, other in pairs}
    for name, other in sorted(pairs, key=shared.__getitem__, reverse=True):
        alike = 2 * shared[name, other] >= max(len(now[name]), len(before[other]))
        if alike and name not in formers and other not in formers.values():
            formers[name] = other
    return formers


def _change(before: Cases, now: Cases, read_anew: bool) -> str:
    """Say in what the files of a cohort differ from those evaluated; "" when in nothing."""
    came, went = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    if came or went:
        return f"{came} volumes came, {went} went"
    return "read in another way, or with other tables" if read_anew or before != now else ""


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
