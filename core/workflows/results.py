"""What pages, plots and reports read: tables of a study, and the volumes behind its cases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from core.volume import AXES_FAULT, CONTENT_FAULTS, NO_BRAIN, Volume, grid_named, load_labels
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
DETAILS = "details.json"
SHOWN = 4  # brains behind a number
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


def rank_scores(results: Results) -> pd.DataFrame:
    """Rank the cohorts of each metric, encoder and variant; see `rank_table`."""
    failures = {
        name: f"last, because {bad} of its {n} volumes failed the image checks"
        for name in results.metrics["cohort"].unique()
        for bad, n in [image_failures(results, name)]
        if bad
    }
    return rank_table(results.metrics, results.provenance.get("fingerprints", {}), failures)


def image_failures(results: Results, cohort: str) -> tuple[int, int]:
    """Count the volumes of a generated cohort that were refused for what they show, and these with those that are used.

    A file that cannot be read is nobody's failure. Nor is a cohort that contradicts its headers as a whole: there the
    headers are wrong.
    """
    cases = results.cases[results.cases["cohort"] == cohort]
    reasons = cases.loc[cases["status"] == "rejected", "reason"].astype(str)
    bad = [reason for reason in reasons if any(fault in reason for fault in CONTENT_FAULTS)]
    turned = sum(AXES_FAULT in reason for reason in bad)
    bad_volumes = len(bad) - (turned if turned > len(cases) / 2 else 0)
    return bad_volumes, bad_volumes + int((cases["status"] == "ok").sum())


def rank_table(
    scores: pd.DataFrame, fingerprints: Mapping[str, dict[str, Any]], failures: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Rank the cohorts of each metric, encoder and variant.

    Parameters
    ----------
    scores : DataFrame
        In the form of metrics.csv.
    fingerprints : mapping of str to dict
        What each fingerprint stands for.
    failures : mapping of str to str
        Cohorts that lack volumes by their own fault, and what to say of it: their scores flatter them, for they are
        those of the better volumes, so they come behind all others.

    Returns
    -------
    DataFrame
        metrics.csv with three more columns. ``rank`` is 1 plus the number of cohorts that are better by a whole
        interval, so that ties share a place; NaN when the score cannot be ranked. ``tie``: the interval overlaps
        that of another cohort. ``note``: why there is no rank, or why it is the last; scores with different
        fingerprints are never ranked together, and the item that differs is named.
    """
    table, failures = scores.assign(rank=np.nan, tie=False, note=""), failures or {}
    for _, everybody in table.groupby(["metric", "encoder", "variant"], sort=False, dropna=False):
        failed = everybody[everybody["cohort"].isin(list(failures)) & everybody["value"].notna()]
        group = everybody.drop(index=failed.index)
        scored = group.dropna(subset=["value", "ci_low", "ci_high"])
        scored = scored[(scored["direction"] != "match real") | scored["floor"].notna()]
        main = scored["fingerprint"].value_counts().index[:1].tolist()
        intervals = {i: badness(row) for i, row in scored[scored["fingerprint"].isin(main)].iterrows()}
        for index, row in group.iterrows():
            if index not in intervals:
                table.loc[index, "note"] = _why_unranked(row, main, fingerprints)
                continue
            low, high = intervals[index]
            others = [interval for other, interval in intervals.items() if other != index]
            table.loc[index, "rank"] = 1 + sum(h < low for _, h in others)
            table.loc[index, "tie"] = any(a <= high and h >= low for a, h in others)
        table.loc[failed.index, "rank"] = 1 + len(intervals)
        table.loc[failed.index, "tie"] = len(failed) > 1
        table.loc[failed.index, "note"] = failed["cohort"].map(failures)
    return table


def cohort_verdicts(results: Results, names: Sequence[str]) -> pd.DataFrame:
    """Count for each cohort what the gate and the comparison of regions say.

    Returns
    -------
    DataFrame
        One row for each of ``names``: ``gated``, ``reliable``, ``certain`` (the interval of the pass rate lies on one
        side of the gate), ``n``, ``failed_volumes``, ``failed_checks`` (those of them that the image checks refused,
        see `image_failures`), ``shapeless`` (cases that are no brain in any orientation), ``ci_low`` and ``ci_high``
        of the pass rate, ``threshold``, ``compared`` (regions with an effect size), ``findings`` (the regions that
        differ, largest effect first), ``large`` (how many of them by a large effect), ``n_real`` and ``n_synthetic``
        of the comparison, ``different``, ``equivalent``, ``undetermined``, ``spread`` (median over the regions of SD
        synthetic / SD real; 1 is best), ``copies`` (the spaces of the copy check in which the cohort is suspicious,
        see `suspicious_copies`), ``used``, ``rejected``.
    """
    rows = []
    suspicious = suspicious_copies(results)
    allowed = 1 - float(results.provenance.get("settings", {}).get("qc_fail_rate", 0.05))
    for name in names:
        gate = results.quality[results.quality["cohort"] == name].head(1)
        effects = results.effect_sizes[results.effect_sizes["cohort"] == name].dropna(subset=["cohens_d"])
        cases = results.cases[results.cases["cohort"] == name]
        status, notes = cases["status"], cases["notes"].astype(str)
        row: dict[str, Any] = {"cohort": name, "gated": len(gate) > 0, "compared": len(effects)}
        row |= {"shapeless": int(notes.str.contains(NO_BRAIN, regex=False).sum())}
        row |= {"reliable": bool(gate["reliable"].all()) and len(gate) > 0}
        row |= {column: int(gate[column].sum()) for column in ("n", "failed_volumes")}
        row |= {column: float(gate[column].sum()) for column in ("ci_low", "ci_high", "threshold")}
        row["failed_checks"] = 0 if name == quality.REAL else image_failures(results, name)[0]
        if row["failed_checks"] and row["gated"]:  # refused before they could be segmented: they fail the gate too
            row |= {column: row[column] + row["failed_checks"] for column in ("n", "failed_volumes")}
            passed = row["n"] - row["failed_volumes"]
            row["ci_low"], row["ci_high"] = quality.pass_interval(passed, row["n"])
            row["reliable"] = row["reliable"] and passed / row["n"] >= allowed
        row["certain"] = not row["ci_low"] < allowed < row["ci_high"]
        found = effects[effects["verdict"] == "different"].sort_values("cohens_d", key=abs, ascending=False)
        row["findings"] = [regional.effect_words(effect) for effect in found.to_dict("records")]
        row["large"] = int((found["cohens_d"].abs() > anatomy.LARGE_EFFECT).sum())
        row |= {size: int(effects[size].max()) if len(effects) else 0 for size in ("n_real", "n_synthetic")}
        row |= {kind: int((effects["verdict"] == kind).sum()) for kind in ("different", "equivalent", "undetermined")}
        row["spread"] = float(np.exp(effects["spread_ratio"].median())) if len(effects) else np.nan
        row["copies"] = [
            f"{check['share']:.0%} on {check['space']}, p = {check['p_value']:.2g}"
            for _, check in suspicious[suspicious["cohort"] == name].iterrows()
        ]
        rows.append(row | {"used": int((status == "ok").sum()), "rejected": int((status == "rejected").sum())})
    return pd.DataFrame(rows).set_index("cohort") if rows else pd.DataFrame()


def suspicious_copies(results: Results, level: float = 0.05) -> pd.DataFrame:
    """Return the rows of the copy check whose p, times the number of spaces a cohort is judged in, is below a level."""
    checks = results.copy_check
    spaces = checks.groupby("cohort")["space"].transform("size")
    return checks[checks["p_value"] * spaces < level]


def judge_copies(results: Results) -> pd.DataFrame:
    """Return the copy check with ``finding``: "suspicious", "unclear" or "none".

    Suspicious as in `suspicious_copies`. Unclear: the permutation test finds nothing, but the 95 % interval of the
    share lies above one half. That interval takes volumes as independent, which look-alikes are not.
    """
    checks, found = results.copy_check, suspicious_copies(results).index
    shares = zip(checks["share"], checks["n_synthetic"], strict=True)
    above = [quality.pass_interval(round(share * n), int(n))[0] > 0.5 for share, n in shares]
    finding = pd.Series(np.where(above, "unclear", "none"), checks.index, dtype=object)
    return checks.assign(finding=finding.mask(checks.index.isin(found), "suspicious"))


def typical_case(results: Results, cohort: str) -> str:
    """Return the case whose lowest QC score, the one that decides at the gate, is the median; "" without scores."""
    lowest = qc_of(results, cohort).min(axis=1).sort_values(kind="stable")
    return str(lowest.index[(len(lowest) - 1) // 2]) if len(lowest) else ""


def cases_behind(results: Results, cohort: str, topic: str) -> list[tuple[str, str]]:
    """Return the (cohort, case) that show best what a reason of the verdict on a cohort rests on.

    Those that fail the gate, worst first; the extremes of the region that differs most; the synthetic and training
    cases nearest to each other; else typical ones.
    """
    scores = qc_of(results, cohort)
    if topic == "gate" and len(scores) and len(results.quality):
        cases = quality.failing_cases(scores, float(results.quality["threshold"].iloc[0]))["subject"].tolist()
        if cases:
            return [(cohort, str(case)) for case in cases[:SHOWN]]
    if topic == "anatomy" and (region := worst_region(results, cohort)):
        return [(cohort, str(c)) for c in regional.most_extreme(results.percentiles, cohort, region, SHOWN)["subject"]]
    if topic == "copies":
        pairs = results.copies[results.copies["cohort"] == cohort].sort_values("ratio", kind="stable")
        if len(pairs):
            return [(cohort, str(pairs["case"].iloc[0])), ("training", str(pairs["nearest_training"].iloc[0]))]
    lowest = scores.min(axis=1)
    near = (lowest - lowest.median()).abs().sort_values(kind="stable").index[:SHOWN]
    return [(cohort, str(case)) for case in near]


def worst_region(results: Results, cohort: str) -> str:
    """Return the region with the largest effect; "" without one."""
    effects = results.effect_sizes[results.effect_sizes["cohort"] == cohort].dropna(subset=["cohens_d"])
    order = effects.sort_values("cohens_d", key=abs, ascending=False, kind="stable")
    return str(order["region"].iloc[0]) if len(order) else ""


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


def badness(row: pd.Series) -> tuple[float, float]:
    """Return the interval of how bad a score is: lower is better whatever the metric's direction."""
    low, high = float(row["ci_low"]), float(row["ci_high"])
    if row["direction"] == "higher":
        return -high, -low
    if row["direction"] == "match real" and np.isfinite(row["floor"]):
        distances = abs(low - row["floor"]), abs(high - row["floor"])
        return (0.0 if low <= row["floor"] <= high else min(distances)), max(distances)
    return low, high


def _why_unranked(row: pd.Series, main: Sequence[str], fingerprints: Mapping[str, dict[str, Any]]) -> str:
    if not np.isfinite(row["value"]):
        return "not computed"
    if not (np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"])):
        return "no interval: too few volumes"
    if row["direction"] == "match real" and not np.isfinite(row["floor"]):
        return "no real value to match"
    own, other = fingerprints.get(row["fingerprint"], {}), fingerprints.get(main[0], {})
    items = [f"{key} {own.get(key)} instead of {other.get(key)}" for key in own if own.get(key) != other.get(key)]
    return "computed differently: " + ("; ".join(items) or "no record of how")
