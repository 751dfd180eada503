"""Evaluation of a study: from checked cohorts to the three result tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import __version__, anatomy, encoders, metrics, quality, segmentation
from core.errors import InputError, SynthScopeError
from core.pools import Context
from core.store import Store, content_key, write_csv, write_json
from core.study import PROVENANCE, Cohort, Study, read_study
from core.workflows import tasks
from core.workflows.cohorts import INTENSITY_RULES, Prepared, encoder_weights, gather_features, prepare, segment_sources
from core.workflows.results import CASE_COLUMNS, METRIC_COLUMNS, QC_COLUMNS, VOLUME_COLUMNS, results_folder


def evaluate(context: Context, study: str, out: str = "") -> dict[str, Any]:
    """Evaluate a study: check, extract features, score, segment, gate, compare anatomy.

    Tables are written as soon as they are known, first to the workspace, then to ``out``.

    Parameters
    ----------
    context : Context
        Pool, settings, progress.
    study : str
        Path of study.toml.
    out : str
        Folder that also receives the tables; "" keeps them in the workspace.

    Returns
    -------
    dict
        ``cases``, ``failed``, ``gaps`` and ``out``.

    Raises
    ------
    InputError
        See `core.study.read_study`; no usable real volume.
    """
    plan = read_study(study)
    check_choices(plan)
    run = Evaluation(context, plan, [results_folder(context.settings, plan.path), *([Path(out)] if out else [])])
    with context.stage(0.0, 0.1):
        run.prepare()
    with context.stage(0.1, 0.5):
        run.score_features()
    with context.stage(0.5, 0.65):
        run.score_volumes()
    with context.stage(0.65, 1.0):
        run.compare_anatomy()
    return run.finish()


def check_choices(study: Study) -> None:
    """Refuse a study that names an encoder or segmenter that does not exist, before any work.

    Raises
    ------
    InputError
    """
    try:
        for name in study.settings.encoders:
            encoders.encoder_named(name)
        segmentation.fingerprint(study.settings.segmenter)
    except InputError as error:
        raise InputError(error.what, str(study.path), error.remedy) from error


class Evaluation:
    """One evaluation; its steps share the prepared cohorts and the list of gaps.

    Parameters
    ----------
    context : Context
        Pool, settings, progress.
    study : Study
        What is compared.
    folders : sequence of Path
        Where the tables go, rewritten after every step.
    """

    def __init__(self, context: Context, study: Study, folders: Sequence[Path]) -> None:
        self.context, self.study, self.folders = context, study, list(folders)
        self.settings = context.settings
        self.store = Store(self.settings.workspace)
        self.cohorts: list[Prepared] = []
        self.gaps: list[dict[str, str]] = []  # numbers that are missing
        self.warnings: list[dict[str, str]] = []  # numbers that are there and need care
        self.fingerprints: dict[str, dict[str, Any]] = {}
        self.metric_rows: list[dict[str, Any]] = []

    @property
    def real(self) -> Prepared:
        """The real cohort."""
        return self.cohorts[0]

    @property
    def synthetic(self) -> list[Prepared]:
        """The synthetic cohorts that have a usable volume."""
        return [p for p in self.cohorts if p.cohort.role == "synthetic" and p.sources]

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table to every folder."""
        for folder in self.folders:
            write_csv(table, folder / name)

    def gap(self, cohort: str, what: str, reason: str) -> None:
        """Note what is missing from the results, and why."""
        item = {"cohort": cohort, "what": what, "reason": reason}
        if item not in self.gaps:
            self.gaps.append(item)
            self.context.log(f"{cohort}: {what}: {reason}")

    def prepare(self) -> None:
        """Check all cohorts; write cases.csv."""
        self.cohorts = [prepare(self.context, self.study, cohort) for cohort in self.study.cohorts]
        for prepared in self.cohorts:
            for note in prepared.cohort.notes:
                self.context.log(f"{prepared.cohort.name}: {note}")
            if not prepared.sources:
                self.gap(prepared.cohort.name, "cohort", "no usable volume")
        self.write("cases.csv", pd.DataFrame([r for p in self.cohorts for r in p.rows], columns=list(CASE_COLUMNS)))
        if not self.real.sources:
            first = next((row["reason"] for row in self.real.rows if row["reason"]), "no case")
            raise InputError(f"no real volume can be used; the first reason: {first}", str(self.study.path))

    def score_features(self) -> None:
        """Extract features and score them, encoder by encoder."""
        names = self.study.settings.encoders
        for index, encoder in enumerate(names):
            with self.context.stage(index / len(names), (index + 1) / len(names)):
                try:
                    weights = encoder_weights(self.store, encoder)
                    fingerprint = encoders.fingerprint(encoder, weights or None)
                except SynthScopeError as error:
                    self.gap("all", encoder, str(error))
                    continue
                self._score_encoder(encoder, weights, fingerprint)

    def _score_encoder(self, encoder: str, weights: str, fingerprint: str) -> None:
        cohorts = [self.real, *self.synthetic]
        matrices: dict[str, str] = {}
        for index, prepared in enumerate(cohorts):
            with self.context.stage(index / len(cohorts), (index + 1) / len(cohorts)):
                matrices[prepared.cohort.name] = self._feature_matrix(prepared, encoder, weights, fingerprint)
            if index:
                self._score_pair(prepared, encoder, fingerprint, matrices)

    def _feature_matrix(self, prepared: Prepared, encoder: str, weights: str, fingerprint: str) -> str:
        arguments = [(self.settings, source, encoder, weights) for source in prepared.sources]
        title = f"{encoder} features of {prepared.cohort.name}"
        outcomes = self.context.map(title, tasks.extract_features, arguments)
        for source, outcome in zip(prepared.sources, outcomes, strict=True):
            if outcome.error:
                self.gap(prepared.cohort.name, f"{encoder} features of {source.case_id}", outcome.error)
        keys = [outcome.value for outcome in outcomes if not outcome.error]
        return gather_features(self.store, keys)

    def _score_pair(self, prepared: Prepared, encoder: str, fingerprint: str, matrices: Mapping[str, str]) -> None:
        entries = [(key, m) for key, m in metrics.METRICS.items() if m.inputs == "features"]
        settings = self.study.settings
        keys = (matrices[self.real.cohort.name], matrices[prepared.cohort.name])
        outcomes = self.context.map(
            f"{encoder} scores of {prepared.cohort.name}",
            tasks.score_features,
            [(self.settings, key, *keys, settings.seed, settings.n_boot) for key, _ in entries],
        )
        for (key, _), outcome in zip(entries, outcomes, strict=True):
            self._add_metric_row(prepared, key, encoder, fingerprint, outcome.value, outcome.error)
        self.write_metrics()

    def score_volumes(self) -> None:
        """Score what is measured on the volumes themselves."""
        entries = [(key, m) for key, m in metrics.METRICS.items() if isinstance(m, metrics.VolumeMetric)]
        cohorts = self.synthetic
        steps = [(prepared, key, metric) for prepared in cohorts for key, metric in entries]
        for index, (prepared, key, metric) in enumerate(steps):
            with self.context.stage(index / len(steps), (index + 1) / len(steps)):
                try:
                    score = self._score_groups(prepared, key, metric)
                except InputError as error:
                    self._add_metric_row(prepared, key, "", "", None, str(error))
                else:
                    self._add_metric_row(prepared, key, "", "", score, "")
            self.write_metrics()

    def _score_groups(self, prepared: Prepared, key: str, metric: metrics.VolumeMetric) -> dict[str, Any]:
        settings = self.study.settings
        counts = {"n_real": len(self.real.sources), "n_synthetic": len(prepared.sources)}
        if min(counts.values()) < metric.least_n:
            what = f"needs at least {metric.least_n} volumes in each cohort, found {min(counts.values())}."
            raise InputError(what, prepared.cohort.name, "Add volumes.")
        groups = metric.plan(**counts, seed=settings.seed)
        sides = {"real": self.real.sources, "synthetic": prepared.sources}
        distinct = list(dict.fromkeys(groups))  # a group drawn twice counts twice and is measured once
        arguments = [
            (self.settings, tuple(sides[role][i] for role, i in group), key, tuple(role for role, _ in group))
            for group in distinct
        ]
        title = f"{metric.label} of {prepared.cohort.name}"
        outcomes = dict(zip(distinct, self.context.map(title, tasks.measure, arguments), strict=True))
        values = [np.nan if outcomes[g].value is None else outcomes[g].value for g in groups]
        failed = next((outcome.error for outcome in outcomes.values() if outcome.error), "")
        if failed and not np.isfinite(values).any():
            raise InputError(failed, prepared.cohort.name)
        score = metric.summarise(groups, values, **counts, seed=settings.seed, n_boot=settings.n_boot)
        return score.to_dict()

    def _add_metric_row(
        self, prepared: Prepared, key: str, encoder: str, weights: str, score: dict[str, Any] | None, error: str
    ) -> None:
        metric = metrics.METRICS[key]
        counts = {"n_real": len(self.real.sources), "n_synthetic": len(prepared.sources)}
        numbers = score or {"value": None, "ci_low": None, "ci_high": None, "floor": None, **counts}
        if error:
            self.gap(prepared.cohort.name, f"{key} {encoder}".strip(), error)
        items = {
            "real cohort": self.real.token,
            "grid": self.study.grid.name,
            "intensity rules outside [-1, 1]": INTENSITY_RULES,
            "encoder": encoder,
            "encoder weights": weights,
            "estimator": f"{key} v{metric.version}",
            "real N": numbers["n_real"],
            "synthetic N": numbers["n_synthetic"],
            "seed": self.study.settings.seed,
            "bootstraps": self.study.settings.n_boot,
            "code": __version__,
        }
        fingerprint = content_key("fingerprint", 1, [], items)[:12]
        self.fingerprints[fingerprint] = items
        row = {
            "cohort": prepared.cohort.name,
            "metric": metric.name,
            "encoder": encoder,
            "variant": metric.variant,
            "direction": metric.direction,
            "fingerprint": fingerprint,
            **{c: numbers[c] for c in ("value", "ci_low", "ci_high", "floor", "n_real", "n_synthetic")},
        }
        self.metric_rows.append(row)
        for warning in numbers.get("warnings", ()):
            item = {"cohort": prepared.cohort.name, "what": f"{key} {encoder}".strip(), "reason": warning}
            (self.warnings if numbers["value"] is not None else self.gaps).append(item)

    def write_metrics(self) -> None:
        """Write metrics.csv as far as it is known."""
        self.write("metrics.csv", self.metrics_table())
        self.write_provenance(complete=False)

    def metrics_table(self) -> pd.DataFrame:
        """Return metrics.csv as far as it is known, in the order of the study."""
        order = {p.cohort.name: i for i, p in enumerate(self.cohorts)}
        rows = sorted(self.metric_rows, key=lambda row: order[row["cohort"]])
        return pd.DataFrame(rows, columns=list(METRIC_COLUMNS))

    def compare_anatomy(self) -> None:
        """Segment or import, gate, compare regional volumes; cohort by cohort."""
        tables: dict[str, tuple[pd.DataFrame, pd.DataFrame | None, str]] = {}
        cohorts = [self.real, *self.synthetic]
        for index, prepared in enumerate(cohorts):
            with self.context.stage(index / len(cohorts), (index + 1) / len(cohorts)):
                try:
                    tables[prepared.cohort.name] = self._volume_tables(prepared)
                except SynthScopeError as error:
                    self.gap(prepared.cohort.name, "anatomy", str(error))
            self._write_anatomy(tables)

    def _volume_tables(self, prepared: Prepared) -> tuple[pd.DataFrame, pd.DataFrame | None, str]:
        """Volumes, QC and the engine they come from."""
        cohort = prepared.cohort
        if cohort.volumes or cohort.qc:
            cases = [source.case_id for source in prepared.sources]
            volumes = self._matching(cohort, anatomy.read_volumes(cohort.volumes), cases) if cohort.volumes else None
            qc = self._matching(cohort, quality.read_qc(cohort.qc), cases) if cohort.qc else None
            if volumes is None:
                raise InputError("a QC table without a volume table.", cohort.name, "Give both, or neither.")
            return volumes, qc, "imported"
        engine = self.study.settings.segmenter
        volumes, qc, failed = segment_sources(self.context, engine, prepared.sources, cohort.name)
        for case, reason in failed.items():
            self.gap(cohort.name, f"segmentation of {case}", reason)
        return volumes, qc, engine

    def _matching(self, cohort: Cohort, table: pd.DataFrame, cases: Sequence[str]) -> pd.DataFrame:
        """Keep the rows of this cohort's cases; say which do not match."""
        names = {str(subject).removesuffix("_synthseg"): subject for subject in table.index}
        known = [case for case in cases if case in names]
        if not known:
            raise InputError(
                f"no subject of the table is a case of the cohort (for example {table.index[0]!r} and {cases[0]!r}).",
                cohort.name,
                "Name the rows after the image files.",
            )
        if len(known) < len(cases):
            lacking = [case for case in cases if case not in names]
            self.gap(cohort.name, "imported tables", f"{len(lacking)} cases have no row: {', '.join(lacking[:5])}")
        if len(names) > len(known):
            extra = sorted(set(names) - set(known))
            self.gap(cohort.name, "imported tables", f"{len(extra)} rows match no case: {', '.join(extra[:5])}")
        matched = table.loc[[names[case] for case in known]].set_axis(pd.Index(known, name="subject"))
        matched.attrs.update(table.attrs)
        return matched

    def _write_anatomy(self, tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None, str]]) -> None:
        qc = {name: table for name, (_, table, _) in tables.items() if table is not None and len(table)}
        volumes = {name: table for name, (table, _, _) in tables.items() if len(table)}
        real = self.real.cohort.name
        self.write("qc.csv", _stack(qc, QC_COLUMNS))
        self.write("volumes.csv", _stack(volumes, VOLUME_COLUMNS))
        if real in volumes and real not in qc:
            self.gap(real, "gate", "no QC scores of the real cohort, so no threshold: give its QC table too")
        if real in qc:
            settings = self.study.settings
            gate = quality.quality_table(
                qc[real],
                {name: table for name, table in qc.items() if name != real},
                fail_rate=settings.qc_fail_rate,
                threshold=settings.qc_threshold,
            )
            self.write("quality.csv", gate)
        effects = []
        for name, table in volumes.items():
            if name == real or real not in volumes:
                continue
            if tables[name][2] != tables[real][2]:
                self.gap(name, "anatomy", f"volumes from {tables[name][2]}, real volumes from {tables[real][2]}")
                continue
            try:
                effect = anatomy.effect_sizes(volumes[real], table, seed=self.study.settings.seed)
            except InputError as error:
                self.gap(name, "anatomy", str(error))
            else:
                effects.append(effect.assign(cohort=name))
        columns = ["cohort", *anatomy.EFFECT_COLUMNS]
        self.write("effect_sizes.csv", pd.concat(effects)[columns] if effects else pd.DataFrame(columns=columns))
        self.write_provenance(complete=False)

    def write_provenance(self, *, complete: bool) -> None:
        """Write what the numbers were made from."""
        record = {
            "study": self.study.name,
            "settings": self.study.settings.model_dump(mode="json"),
            "grid": self.study.grid.name,
            "study_file": self.study.path.name,
            "code": __version__,
            "complete": complete,
            "cohorts": [
                {
                    "name": p.cohort.name,
                    "role": p.cohort.role,
                    "origin": p.cohort.origin,
                    "used": len(p.sources),
                    "rejected": len(p.rows) - len(p.sources),
                    "content": p.token,
                    "notes": list(p.cohort.notes),
                }
                for p in self.cohorts
            ],
            "inputs": {f"{p.cohort.name}/{s.case_id}": s.sha for p in self.cohorts for s in p.sources},
            "engine": segmentation.fingerprint(self.study.settings.segmenter),
            "fingerprints": self.fingerprints,
            "gaps": self.gaps,
            "warnings": self.warnings,
        }
        for folder in self.folders:
            write_json(record, folder / PROVENANCE)

    def failed(self) -> int:
        """Count cases that could not be used."""
        rejected = sum(len(p.rows) - len(p.sources) for p in self.cohorts)
        lost = {(gap["cohort"], gap["what"].partition(" of ")[2]) for gap in self.gaps if " of " in gap["what"]}
        return rejected + len(lost)

    def finish(self) -> dict[str, Any]:
        """Mark the tables as complete and count."""
        self.write_provenance(complete=True)
        counts = {"cases": sum(len(p.rows) for p in self.cohorts), "failed": self.failed(), "gaps": len(self.gaps)}
        return {**counts, "out": str(self.folders[-1])}


def _stack(tables: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    parts = [table.reset_index().assign(cohort=name) for name, table in tables.items()]
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(parts).reindex(columns=list(columns))
