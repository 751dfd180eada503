"""What pages, plots and reports read: tables of a study, and the volumes behind its cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from core import anatomy, quality
from core.errors import InputError
from core.settings import Settings
from core.store import Store
from core.study import PROVENANCE, Case, Study
from core.volume import Volume, grid_named, load_labels
from core.workflows import tasks
from core.workflows.cohorts import INTENSITY_RULES, template_of

METRIC_COLUMNS = (
    "cohort", "metric", "encoder", "variant", "value", "ci_low", "ci_high", "floor",
    "n_real", "n_synthetic", "direction", "fingerprint",
)  # fmt: skip
CASE_COLUMNS = ("cohort", "case", "status", "reason", "notes", "path", "participant", "age", "sex", "site")
QC_COLUMNS = ("cohort", "subject", *quality.QC_SCORES)
VOLUME_COLUMNS = ("cohort", "subject", *anatomy.volume_columns(True))


@dataclass(frozen=True)
class Results:
    """The tables of one study as far as they are computed; empty tables keep their columns."""

    metrics: pd.DataFrame
    quality: pd.DataFrame
    effect_sizes: pd.DataFrame
    cases: pd.DataFrame
    qc: pd.DataFrame
    volumes: pd.DataFrame
    provenance: dict[str, Any]


def read_results(settings: Settings, study: Path | str) -> Results:
    """Read what is known about a study so far."""
    folder = results_folder(settings, Path(study))
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        provenance = {}
    return Results(
        metrics=_read_csv(folder / "metrics.csv", METRIC_COLUMNS),
        quality=_read_csv(folder / "quality.csv", quality.QUALITY_COLUMNS),
        effect_sizes=_read_csv(folder / "effect_sizes.csv", ("cohort", *anatomy.EFFECT_COLUMNS)),
        cases=_read_csv(folder / "cases.csv", CASE_COLUMNS),
        qc=_read_csv(folder / "qc.csv", ("cohort", "subject", *quality.QC_SCORES)),
        volumes=_read_csv(folder / "volumes.csv", ("cohort", "subject", *anatomy.volume_columns(True))),
        provenance=provenance,
    )


def results_folder(settings: Settings, study: Path) -> Path:
    """Return the workspace folder of a study's tables."""
    path = study.resolve()
    path = path / "study.toml" if path.is_dir() else path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Store(settings.workspace).folder("results", name)


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    text = ("cohort", "case", "subject", "status", "reason", "notes", "path", "participant", "sex", "site", "encoder")
    kinds = dict.fromkeys((*text, "fingerprint", "metric", "variant", "direction", "region", "verdict"), "str")
    try:
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values={"": []})  # type: ignore[arg-type]
    except (OSError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=list(columns))
    numeric = [c for c in table.columns if c not in kinds and table[c].dtype == object]
    table[numeric] = table[numeric].apply(pd.to_numeric, errors="ignore")
    return table


def load_case(settings: Settings, study: Study, cohort: str, case_id: str) -> Volume:
    """Return one case on the study's grid, in [-1, 1], for looking at it.

    Raises
    ------
    InputError
        Unknown case, or a file that cannot be used.
    """
    return _source(settings, study, cohort, case_id).load()


def load_case_labels(settings: Settings, study: Study, cohort: str, case_id: str) -> Volume | None:
    """Return the label map of one case, None while it is not segmented."""
    key = tasks.segmentation_key(_source(settings, study, cohort, case_id), study.settings.segmenter)
    store = Store(settings.workspace)
    return load_labels(store.path("labels", key)) if store.has("labels", key) else None


def _source(settings: Settings, study: Study, cohort: str, case_id: str) -> tasks.Source:
    found = study.cohort(cohort)
    case = _case(found.cases, case_id, cohort)
    path, orientation = str(case.path), found.orientation
    if found.raw:
        path = tasks.preprocess_scan(settings, path, study.grid.name, template_of(study))["path"]
        orientation = ""
    grid, rule = grid_named(study.grid.name).name, INTENSITY_RULES[found.role]
    sha = tasks.check(settings, path, grid, rule, orientation)["sha"]
    return tasks.Source(case_id, path, sha, grid, rule, orientation)


def _case(cases: Sequence[Case], case_id: str, cohort: str) -> Case:
    for case in cases:
        if case.case_id == case_id:
            return case
    raise InputError(f"there is no case {case_id!r}.", cohort, "It may have been deleted or renamed; choose another.")
