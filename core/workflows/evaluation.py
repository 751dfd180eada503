"""Evaluation of a study: from checked cohorts to the three result tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import anatomy, encoders, image_checks, quality, segmentation
from core.errors import InputError, SynthScopeError
from core.pools import Context
from core.study import Cohort, Study, read_study
from core.workflows import regional, tasks
from core.workflows.cohorts import Prepared, segment_sources
from core.workflows.copies import CopyCheck
from core.workflows.maps import draw_maps
from core.workflows.results import QC_COLUMNS, VOLUME_COLUMNS, results_folder
from core.workflows.run import Run
from core.workflows.scoring import Scoring, check_metrics
from core.workflows.viewing import draw_all


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
    scoring = Scoring(run, plan.settings.metrics)
    with context.stage(0.0, 0.09):
        run.prepare()
    with context.stage(0.09, 0.1):
        draw_all(context, run.cohorts)
    with context.stage(0.1, 0.45):
        scoring.score_features()
    with context.stage(0.45, 0.5):
        scoring.score_products()
        draw_maps(scoring)
    with context.stage(0.5, 0.6):
        CopyCheck(scoring).check()
        run.write_provenance(complete=False)
    with context.stage(0.6, 0.7):
        scoring.score_volumes()
    with context.stage(0.7, 1.0):
        run.compare_anatomy()
    return run.finish()


def check_choices(study: Study) -> None:
    """Refuse a study that names an encoder, metric or segmenter that does not exist, before any work.

    Raises
    ------
    InputError
    """
    try:
        for name in study.settings.encoders:
            encoders.encoder_named(name)
        check_metrics(study.settings.metrics, "metrics")
        segmentation.fingerprint(study.settings.segmenter)
    except InputError as error:
        raise InputError(error.what, str(study.path), error.remedy) from error


class Evaluation(Run):
    """An evaluation that also compares anatomy."""

    def __init__(self, context: Context, study: Study, folders: Sequence[Path]) -> None:
        super().__init__(context, study, folders)
        self.image_rows: list[dict[str, Any]] = []

    def compare_anatomy(self) -> None:
        """Segment or import, gate, compare regional volumes; cohort by cohort."""
        tables: dict[str, tuple[pd.DataFrame, pd.DataFrame | None, str]] = {}
        compared: dict[str, regional.Comparison] = {}
        cohorts = [self.real, *self.synthetic]
        for index, prepared in enumerate(cohorts):
            with self.context.stage(index / len(cohorts), (index + 1) / len(cohorts)):
                try:
                    tables[prepared.cohort.name] = self._volume_tables(prepared)
                except SynthScopeError as error:
                    self.gap(prepared.cohort.name, "anatomy", str(error))
            self._write_anatomy(tables, compared)

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
        self._check_images(prepared, engine, failed)
        return volumes, qc, engine

    def _check_images(self, prepared: Prepared, engine: str, failed: Mapping[str, str]) -> None:
        """Look at the images of segmented volumes; write what all cohorts so far show."""
        name = prepared.cohort.name
        sources = [source for source in prepared.sources if source.case_id not in failed]
        arguments = [(self.context.settings, source, engine) for source in sources]
        outcomes = self.context.map(f"checking the images of {name}", tasks.check_image, arguments)
        for source, outcome in zip(sources, outcomes, strict=True):
            if outcome.error:
                self.gap(name, f"image check of {source.case_id}", outcome.error)
            else:
                self.image_rows.append({"cohort": name, "subject": source.case_id, **outcome.value})
        table = pd.DataFrame(self.image_rows, columns=["cohort", "subject", *image_checks.CHECKS])
        self.write("image_checks.csv", image_checks.unlike_real(table, self.real.cohort.name))

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

    def _write_anatomy(
        self,
        tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None, str]],
        compared: dict[str, regional.Comparison],
    ) -> None:
        """Write the tables as far as they are known; ``compared`` keeps what was computed for earlier cohorts."""
        qc = {name: table for name, (_, table, _) in tables.items() if table is not None and len(table)}
        volumes = {name: table for name, (table, _, _) in tables.items() if len(table)}
        real = self.real.cohort.name
        self.write("qc.csv", _stack(qc, QC_COLUMNS))
        self.write("volumes.csv", _stack(volumes, VOLUME_COLUMNS))
        if real in volumes and real not in qc:
            self.gap(real, "gate", "no QC scores of the real cohort, so no threshold: give its QC table too")
        threshold = None
        if real in qc:
            settings = self.study.settings
            gate = quality.quality_table(
                qc[real],
                {name: table for name, table in qc.items() if name != real},
                fail_rate=settings.qc_fail_rate,
                threshold=settings.qc_threshold,
            )
            self.write("quality.csv", gate)
            threshold = float(gate["threshold"].iloc[0])
        if real in volumes:
            self._compare_regions(tables, volumes, qc, threshold, compared)
        stacked = regional.stack(compared)
        for key, table in stacked.items():
            self.write(f"{key}.csv", table)
        effects = regional.at_gate(stacked["regional"], False)
        self.write("effect_sizes.csv", effects[["cohort", *anatomy.EFFECT_COLUMNS]])
        self.write_provenance(complete=False)

    def _compare_regions(
        self,
        tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None, str]],
        volumes: Mapping[str, pd.DataFrame],
        qc: Mapping[str, pd.DataFrame],
        threshold: float | None,
        compared: dict[str, regional.Comparison],
    ) -> None:
        """Compare the cohorts that are not in ``compared`` yet with the real one."""
        cohorts = {prepared.cohort.name: prepared.cohort for prepared in self.cohorts}
        real = self.real.cohort.name
        for name in [name for name in volumes if name not in compared]:
            engine = tables[name][2]
            if engine != tables[real][2]:
                self.gap(name, "anatomy", f"volumes from {engine}, real volumes from {tables[real][2]}")
                continue
            sides = [regional.Side(volumes[n], qc.get(n), regional.people_of(cohorts[n])) for n in (real, name)]
            seed = self.study.settings.seed
            try:
                if name == real:
                    compared[name] = regional.norms_of_real(sides[0])
                else:
                    compared[name] = regional.compare(*sides, threshold=threshold, engine=engine, seed=seed)
            except InputError as error:
                self.gap(name, "anatomy", str(error))
                continue
            for what, reason in compared[name].gaps:
                self.gap(name, what, reason)
            for what, reason in compared[name].warnings:
                self.warn(name, what, reason)


def _stack(tables: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    parts = [table.reset_index().assign(cohort=name) for name, table in tables.items()]
    if not parts:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(parts).reindex(columns=list(columns))
