"""Cohorts on disk made ready: checked, preprocessed, encoded, segmented."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core import encoders, segmentation
from core.errors import InputError
from core.pools import Context, Outcome
from core.store import Store, content_key
from core.study import Case, Cohort, CohortSpec, Role, Study, StudySettings, check_name, find_cohort
from core.volume import Grid, grid_of
from core.workflows import tasks
from core.workflows.batches import segment_in_batches
from core.workflows.tasks import Source

INTENSITY_RULES = {"real": "percentile", "training": "percentile", "synthetic": "maximum"}
GROUP = 8  # volumes a feature task holds: its first load is the only one that waits, and a cancelled job ends soon


@dataclass(frozen=True)
class Prepared:
    """A cohort whose volumes were checked: the usable sources, and a row for every case."""

    cohort: Cohort
    sources: tuple[Source, ...]
    rows: tuple[dict[str, Any], ...]

    @cached_property
    def token(self) -> str:
        """Hash of all volumes in order."""
        return content_key("cohort", 1, [source.token for source in self.sources], {})


def prepare(context: Context, study: Study, cohort: Cohort) -> Prepared:
    """Check every case of a cohort (raw ones are preprocessed first); nothing is dropped silently.

    Returns
    -------
    Prepared
        ``rows`` has one row per case and per rejected file; status "ok" or "rejected".
    """
    rule = INTENSITY_RULES[cohort.role]
    settings, grid = context.settings, study.grid.name
    paths = {case.case_id: str(case.path) for case in cohort.cases}
    errors = {case.case_id: "" for case in cohort.cases}
    if paths:
        context.share(os.path.commonpath([os.path.dirname(path) for path in paths.values()]))
    if cohort.raw:
        template = template_of(study)
        context.share(*([] if template == "embedded" else [template]))
        scans = [(settings, path, grid, template) for path in paths.values()]
        outcomes = context.map(f"preprocessing {cohort.name}", tasks.preprocess_scan, scans)
        for case, outcome in zip(cohort.cases, outcomes, strict=True):
            errors[case.case_id] = outcome.error
            if not outcome.error:
                paths[case.case_id] = outcome.value["path"]
    orientation = "" if cohort.raw else cohort.orientation
    good = [case for case in cohort.cases if not errors[case.case_id]]
    arguments = [(settings, paths[case.case_id], grid, rule, orientation) for case in good]
    outcomes = context.map(f"checking {cohort.name}", tasks.check, arguments)
    sources: list[Source] = []
    seen: dict[str, str] = {}
    notes: dict[str, str] = {}
    for case, outcome in zip(good, outcomes, strict=True):
        if outcome.error:
            errors[case.case_id] = outcome.error
            continue
        sha = outcome.value["sha"]
        if sha in seen:
            errors[case.case_id] = f"same content as {seen[sha]}: counted once. Remove the duplicate."
            context.log(f"{case.path}: {errors[case.case_id]}")
            continue
        seen[sha] = case.case_id
        notes[case.case_id] = "; ".join(outcome.value["notes"])
        sources.append(Source(case.case_id, paths[case.case_id], sha, grid, rule, orientation))
    rows = [_case_row(cohort, case, errors[case.case_id], notes.get(case.case_id, "")) for case in cohort.cases]
    for item in cohort.rejected:
        row = {"case": item.case_id, "status": "rejected", "reason": item.reason, "notes": "", "path": item.path}
        rows.append({"cohort": cohort.name, **row})
    return Prepared(cohort, tuple(sources), tuple(rows))


def segment_sources(
    context: Context, engine: str, sources: Sequence[Source], title: str
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Segment volumes with one engine.

    Returns
    -------
    volumes, qc : DataFrame
        SynthSeg's columns, one row per segmented case.
    failed : dict
        Case to reason.

    Raises
    ------
    InputError
        Every case failed.
    MissingAsset
        The engine is a program that is not installed, and not everything is stored.
    """
    if segmentation.in_batches(engine):
        outcomes = segment_in_batches(context, engine, sources, title)
    else:
        arguments = [(context.settings, source, engine) for source in sources]
        outcomes = context.map(f"segmenting {title}", tasks.segment, arguments)
    failed = {s.case_id: o.error for s, o in zip(sources, outcomes, strict=True) if o.error}
    rows = {s.case_id: o.value for s, o in zip(sources, outcomes, strict=True) if not o.error}
    index = pd.Index(list(rows), name="subject")
    volumes = pd.DataFrame([row["volumes"] for row in rows.values()], index=index)
    qc = pd.DataFrame([row["qc"] for row in rows.values()], index=index)
    if not rows and failed:
        raise InputError(next(iter(failed.values())), title)
    return volumes, qc, failed


def extract_features(
    context: Context, sources: Sequence[Source], encoder: str, weights: str, title: str
) -> list[Outcome]:
    """Extract the features of volumes, a few to a task so that the next one loads while the network runs.

    Returns
    -------
    list of Outcome
        For each source the key of its features, or the reason there are none.
    """

    def run(groups: list[list[Source]]) -> list[Outcome]:
        items = [(context.settings, group, encoder, weights) for group in groups]
        sizes = [len(group) for group in groups]
        return context.map(f"{encoder} features of {title}", tasks.extract_features, items, sizes, network=True)

    groups = source_groups(sources, context.settings.workers)
    found = run(groups)
    lost = [source for group, outcome in zip(groups, found, strict=True) if outcome.error for source in group]
    # The volume that takes a worker down must take no other along: those of its group get a task each.
    alone = dict(zip(lost, run([[source] for source in lost]), strict=True)) if lost else {}
    outcomes: list[Outcome] = []
    for group, outcome in zip(groups, found, strict=True):
        parts = [alone[source] for source in group] if outcome.error else [outcome]
        for part in parts:
            outcomes += [part] if part.error else part.value
    for outcome in outcomes:
        if outcome.error:
            context.log(outcome.error)
    return outcomes


def source_groups(sources: Sequence[Source], workers: int) -> list[list[Source]]:
    """Split volumes, in order, into groups of `GROUP` at most: equal ones, and as many for each worker."""
    n = max(1, workers)
    count = min(len(sources), n * math.ceil(len(sources) / (GROUP * n)))
    bounds = [len(sources) * i // max(count, 1) for i in range(count + 1)]
    return [list(sources[start:stop]) for start, stop in itertools.pairwise(bounds)]


def gather_features(store: Store, keys: Sequence[str]) -> str:
    """Stack stored features into one artefact (n, d); return its key."""
    key = content_key("matrix", 1, keys, {})
    store.get_or_compute("npz", key, lambda: {"features": np.stack([store.get("npz", k)["features"] for k in keys])})
    return key


def encoder_weights(store: Store, encoder: str) -> str:
    """Return the weight file of an encoder, downloaded and checked when needed; "" when it has none."""
    if encoders.encoder_named(encoder).source is None:
        return ""
    return str(encoders.fetch(encoder, store.folder("weights")))


def _case_row(cohort: Cohort, case: Case, error: str, notes: str) -> dict[str, Any]:
    facts = {k: v for k, v in asdict(case).items() if k in ("participant", "age", "sex", "site")}
    status = "rejected" if error else "ok"
    row = {"cohort": cohort.name, "case": case.case_id, "status": status, "reason": error, "notes": notes}
    return {**row, "path": str(case.path), **facts}


def template_of(study: Study) -> str:
    """Return "embedded", or the path of the template file the study names."""
    name = study.settings.template
    return name if name == "embedded" else str((study.path.parent / name).resolve())


def folder_cohort(name: str, folder: str, role: Role) -> Cohort:
    """Find the volumes of a folder, for the verbs that work without a study.

    Raises
    ------
    InputError
        No image in the folder.
    """
    check_name(folder)
    if not any(mark in folder for mark in "*?[") and not Path(folder).exists():
        raise InputError("there is no such folder.", folder, "Correct the path.")
    cohort = find_cohort(name, role, CohortSpec(images=str(Path(folder).resolve())), Path())
    if not cohort.cases:
        raise InputError("no image found.", folder, "Give a folder of .nii.gz files in atlas space.")
    return cohort


def prepare_folder(context: Context, name: str, folder: str, role: Role, grid: Grid | None = None) -> Prepared:
    """Find and check the volumes of a folder, on the grid most of them have when none is named.

    Raises
    ------
    InputError
        No image in the folder, or none that can be used.
    """
    cohort = folder_cohort(name, folder, role)
    grid = grid or grid_of([case.path for case in cohort.cases])
    prepared = prepare(context, Study(name, grid, cohort, (), None, StudySettings(), Path(folder)), cohort)
    if not prepared.sources:
        raise InputError(f"no image can be used; the first reason: {prepared.rows[0]['reason']}", folder)
    return prepared
