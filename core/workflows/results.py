"""What pages, plots and reports read: tables of a study, and the volumes behind its cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import anatomy, image_checks, quality
from core.errors import InputError
from core.segmentation import SEGMENTERS, SYNTHSEG_QC_CAVEAT
from core.settings import Settings
from core.store import Store
from core.study import PROVENANCE, Case, Study, StudySpec, read_spec
from core.tables import restored
from core.volume import Volume, grid_named, load_labels
from core.workflows import regional, tasks
from core.workflows.cohorts import INTENSITY_RULES, template_of

METRIC_COLUMNS = (
    "cohort", "metric", "encoder", "variant", "value", "ci_low", "ci_high", "floor",
    "n_real", "n_synthetic", "direction", "fingerprint",
)  # fmt: skip
CASE_COLUMNS = ("cohort", "case", "status", "reason", "notes", "path", "participant", "age", "sex", "site")
QC_COLUMNS = ("cohort", "subject", *quality.QC_SCORES)
VOLUME_COLUMNS = ("cohort", "subject", *anatomy.volume_columns(True))
MAP_COLUMNS = ("encoder", "method", "cohort", "case", "x", "y", "share_x", "share_y")
COPY_COLUMNS = ("cohort", "space", "case", "nearest_training", "ratio", "distance_training", "distance_held_out")
COPY_CHECK_COLUMNS = ("cohort", "space", "share", "p_value", "p_binomial", "n_synthetic", "n_reference")
IMAGE = "image"  # the space of the volumes themselves, in copies.csv and copy_check.csv
DETAILS = "details.json"
RESULT_FILES = (
    "cases.csv", "metrics.csv", DETAILS, "map.csv", "copies.csv", "copy_check.csv",
    "qc.csv", "image_checks.csv", "volumes.csv", "quality.csv", "effect_sizes.csv",
    *(f"{name}.csv" for name in regional.TABLES), PROVENANCE,
)  # fmt: skip
IMAGE_COLUMNS = ("cohort", "subject", *image_checks.CHECKS, "unlike")
QUALITY_COLUMNS = ("cohort", *(item.name for item in fields(quality.GateResult)))
FLAG_COLUMNS = ("reliable", *regional.FLAG_COLUMNS)
TEXT_COLUMNS = (
    "cohort", "case", "subject", "status", "reason", "notes", "path", "participant", "sex", "site", "group", "region",
    "encoder", "metric", "variant", "direction", "fingerprint", "verdict", "method", "space", "nearest_training",
    "unlike",
    *regional.TEXT_COLUMNS,
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """The tables of one study as far as they are computed; empty tables keep their columns.

    ``details`` has one item for each row of ``metrics``: p-value, curve, settings and warnings of the score. ``map``
    holds all cases in one plane per encoder and method, ``copies`` every synthetic case beside its nearest training
    case, ``copy_check`` what that says about a cohort. ``regional`` and the tables after it are those of
    `core.workflows.regional`, before and after the gate (``gated``); ``percentiles`` has a row a case and region.
    """

    metrics: pd.DataFrame
    quality: pd.DataFrame
    effect_sizes: pd.DataFrame
    cases: pd.DataFrame
    qc: pd.DataFrame
    volumes: pd.DataFrame
    provenance: dict[str, Any]
    details: list[dict[str, Any]] = field(default_factory=list)
    map: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(MAP_COLUMNS)))
    copies: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COPY_COLUMNS)))
    copy_check: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COPY_CHECK_COLUMNS)))
    regional: pd.DataFrame = field(default_factory=lambda: _empty("regional"))
    correlation: pd.DataFrame = field(default_factory=lambda: _empty("correlation"))
    correlation_pairs: pd.DataFrame = field(default_factory=lambda: _empty("correlation_pairs"))
    asymmetry: pd.DataFrame = field(default_factory=lambda: _empty("asymmetry"))
    slopes: pd.DataFrame = field(default_factory=lambda: _empty("slopes"))
    exclusions: pd.DataFrame = field(default_factory=lambda: _empty("exclusions"))
    percentiles: pd.DataFrame = field(default_factory=lambda: _empty("percentiles"))
    image_checks: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(IMAGE_COLUMNS)))


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame(columns=list(regional.TABLES[name]))


def read_results(settings: Settings, study: Path | str) -> Results:
    """Read what is known about a study so far, without the cohorts that have left it since; see `read_record`."""
    folder = results_folder(settings, Path(study))
    results = Results(
        metrics=_read_csv(folder / "metrics.csv", METRIC_COLUMNS),
        quality=_read_csv(folder / "quality.csv", QUALITY_COLUMNS),
        effect_sizes=_read_csv(folder / "effect_sizes.csv", ("cohort", *anatomy.EFFECT_COLUMNS)),
        cases=_read_csv(folder / "cases.csv", CASE_COLUMNS),
        qc=_read_csv(folder / "qc.csv", ("cohort", "subject", *quality.QC_SCORES)),
        volumes=_read_csv(folder / "volumes.csv", ("cohort", "subject", *anatomy.volume_columns(True))),
        provenance=_read_json(folder / PROVENANCE) or {},
        details=_read_json(folder / DETAILS) or [],
        image_checks=_read_csv(folder / "image_checks.csv", IMAGE_COLUMNS),
        map=_read_csv(folder / "map.csv", MAP_COLUMNS),
        copies=_read_csv(folder / "copies.csv", COPY_COLUMNS),
        copy_check=_read_csv(folder / "copy_check.csv", COPY_CHECK_COLUMNS),
        **{name: _read_csv(folder / f"{name}.csv", columns) for name, columns in regional.TABLES.items()},
    )
    try:
        return _of_study(results, read_spec(study))
    except InputError:  # whoever shows them says that there is no study
        return results


def read_record(settings: Settings, study: Path | str) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the provenance and the cases of a study's last evaluation, with the cohorts that have left it since."""
    folder = results_folder(settings, Path(study))
    return _read_json(folder / PROVENANCE) or {}, _read_csv(folder / "cases.csv", CASE_COLUMNS)


def _of_study(results: Results, spec: StudySpec) -> Results:
    """Leave out what belongs to a cohort that the study has no longer: pages and reports know nothing else of it."""
    names = {"real", *spec.synthetic, *(["training"] if spec.training else [])}

    def kept(table: pd.DataFrame) -> pd.DataFrame:
        staying = table["cohort"].isin(names)
        return table if staying.all() else table[staying].reset_index(drop=True)

    tables: dict[str, Any] = {
        f.name: kept(getattr(results, f.name)) for f in fields(results) if f.name not in ("provenance", "details")
    }
    if not spec.training:  # what a synthetic cohort was compared with is gone
        tables |= {name: tables[name].iloc[:0] for name in ("copies", "copy_check")}
    return replace(results, details=[item for item in results.details if item["cohort"] in names], **tables)


def results_folder(settings: Settings, study: Path) -> Path:
    """Return the workspace folder of a study's tables."""
    path = study.resolve()
    path = path / "study.toml" if path.is_dir() else path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Store(settings.workspace).folder("results", name)


def results_stamp(settings: Settings, study: Path | str) -> tuple[tuple[str, int], ...]:
    """Return the names and times of a study's file and results, which change whenever `read_results` does."""
    folder, stamp = results_folder(settings, Path(study)), []
    for path in (Path(study), *(folder / name for name in RESULT_FILES)):
        with suppress(FileNotFoundError):
            stamp.append((path.name, path.stat().st_mtime_ns))
    return tuple(stamp)


def _read_json(path: Path) -> Any:
    """Read a JSON file; None while it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a result table; text stays text whatever it looks like, a blank number is NaN."""
    try:
        names = pd.read_csv(path, nrows=0).columns
        numbers = [name for name in names if name not in (*TEXT_COLUMNS, *FLAG_COLUMNS)]
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys(names.difference(numbers), "str"),
            na_values=dict.fromkeys(numbers, ""),
            keep_default_na=False,
            float_precision="round_trip",
            low_memory=False,
        )
    except (OSError, pd.errors.EmptyDataError):
        return pd.DataFrame(columns=list(columns))
    for name in table.columns:
        if name in TEXT_COLUMNS and table[name].str.startswith("'").any():
            table[name] = table[name].map(restored)
        elif name in FLAG_COLUMNS:
            table[name] = table[name] == "True"
        elif name in numbers and table[name].dtype.kind not in "if":  # a cell that is no number
            table[name] = pd.to_numeric(table[name].astype("str"), errors="coerce")
    return table


def load_case(settings: Settings, study: Study, cohort: str, case_id: str) -> Volume:
    """Return one case on the study's grid, in [-1, 1], for looking at it.

    Raises
    ------
    InputError
        Unknown case, or a file that cannot be used.
    """
    return source_of(settings, study, cohort, case_id).load()


def load_case_labels(settings: Settings, study: Study, cohort: str, case_id: str) -> Volume | None:
    """Return the label map of one case, None while it is not segmented."""
    key = tasks.segmentation_key(source_of(settings, study, cohort, case_id), study.settings.segmenter)
    store = Store(settings.workspace)
    return load_labels(store.path("labels", key)) if store.has("labels", key) else None


def source_of(settings: Settings, study: Study, cohort: str, case_id: str) -> tasks.Source:
    """Return one case as it is evaluated: checked, and preprocessed when the cohort is raw.

    Raises
    ------
    InputError
        Unknown case, or a file that cannot be used.
    """
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


# -- tables made ready for reading -------------------------------------------------------------------------------------


def qc_caveats(study: Study) -> list[str]:
    """Return what the quality control behind the gate cannot see: of the study's engine, and of imported tables."""
    engine = SEGMENTERS.get(study.settings.segmenter)
    found = [engine.qc_caveat] if engine and any(not cohort.qc for cohort in study.cohorts) else []
    if any(cohort.qc for cohort in study.cohorts) and SYNTHSEG_QC_CAVEAT not in found:
        found.append(f"Imported scores: {SYNTHSEG_QC_CAVEAT}")
    return found


def qc_of(results: Results, cohort: str) -> pd.DataFrame:
    """Return the QC scores of one cohort, index ``subject``; empty while they are not known."""
    table = results.qc[results.qc["cohort"] == cohort]
    return table.set_index("subject")[list(quality.QC_SCORES)].dropna(how="all")


def regional_tables(results: Results, cohorts: Sequence[str], *, adjusted: bool) -> dict[str, pd.DataFrame]:
    """Return the regional volumes (mm³) of cohorts, left and right averaged.

    Parameters
    ----------
    results : Results
        Of the study.
    cohorts : sequence of str
        Cohorts wanted; those without volumes are left out.
    adjusted : bool
        Remove what total intracranial volume explains over these cohorts pooled, as the effect sizes do for
        the real and one synthetic cohort.
    """
    tables = {}
    for name in cohorts:
        volumes = results.volumes[results.volumes["cohort"] == name].drop(columns="cohort").set_index("subject")
        if len(volumes):
            tables[name] = anatomy.regional_volumes(volumes.dropna(axis=1, how="all"))
    if adjusted and tables:
        pooled = pd.concat(tables)
        tiv = pooled[anatomy.TIV].to_numpy()
        pooled.loc[:, :] = np.column_stack([tiv, anatomy.adjust_for_tiv(pooled.to_numpy()[:, 1:], tiv)])
        tables = {name: pooled.loc[[name]].droplevel(0) for name in tables}
    return tables
