"""Verbs of the command line that work on folders and tables, and the demo study."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import __version__, anatomy, encoders, preprocess, quality, simulate
from core.errors import InputError
from core.participants import read_participants, split_participants
from core.pools import Context
from core.settings import refuse_outside
from core.store import FeatureFile, Store, write_atomically, write_csv, write_features, write_json, write_text
from core.study import PROVENANCE, unique_names
from core.tables import csv_text
from core.volume import grid_named
from core.workflows import tasks
from core.workflows.cohorts import encoder_weights, extract_features, gather_features, prepare_folder, segment_sources


def simulate_cohort(
    context: Context, out: str, n: int, seed: int, grid: str = "full", defect: str = ""
) -> dict[str, Any]:
    """Fill a folder with simulated volumes whose anatomy is known; resumes where it stopped.

    Writes the volumes, ``truth/`` (label maps, one record a case), ``true_volumes.csv`` (SynthSeg's columns),
    ``participants.tsv`` and ``provenance.json`` with the label shown on screen.

    Raises
    ------
    InputError
        Unknown defect or grid, n < 1, or a folder that holds another cohort.
    """
    if n < 1:
        raise InputError(f"expected at least one volume, found {n}.", "--n", "Give a positive number.")
    name, strength = simulate.parse_defect(defect) if defect else ("", 0.0)
    folder = Path(out).absolute()  # workers start in other folders
    settings = {"operation": "simulate", "seed": seed, "grid": grid_named(grid).name, "defect": name}
    settings |= {"strength": strength, "version": simulate.VERSION}
    record = {**settings, "label": simulate.describe(name, strength), "code": __version__}
    claim_folder(folder, record, settings)
    context.share(folder)
    items = [(context.settings, str(folder), grid, seed, index, name, strength) for index in range(n)]
    outcomes = context.map(f"simulating {folder.name}", tasks.simulate_case, items)
    cases = [outcome.value for outcome in outcomes if not outcome.error]
    if cases:
        table = pd.DataFrame([c["volumes"] for c in cases], index=pd.Index([c["case_id"] for c in cases]))
        write_atomically(folder / "true_volumes.csv", lambda p: anatomy.write_volumes(table, p))
        people = pd.DataFrame([{"participant_id": c["case_id"], **c["participant"]} for c in cases])
        write_text(csv_text(people, tabs=True), folder / "participants.tsv")
    return {"cases": n, "failed": n - len(cases), "out": out}


def split_cohort(participants: str, n: int, seed: int, out: str) -> dict[str, Any]:
    """Draw test and training subjects from a pooled table; writes test.tsv and training.tsv."""
    test, training = split_participants(read_participants(participants), n, seed)
    for name, table in (("test.tsv", test), ("training.tsv", training)):
        write_text(csv_text(table, tabs=True, na_rep="n/a"), Path(out) / name)
    return {"test": len(test), "training": len(training), "out": out}


def preprocess_scans(
    context: Context, paths: Sequence[str], out: str, template: str = "embedded", grid: str = "full"
) -> dict[str, Any]:
    """Bring raw T1w scans to the atlas: one ``<case>.nii.gz`` and ``<case>.json`` (steps, affine) each."""
    for path in paths:
        refuse_outside(path)
    scans = preprocess.find_scans([Path(path).absolute() for path in paths])
    template = template if template == "embedded" else str(Path(template).absolute())
    context.share(*{path.parent for path in scans}, *([] if template == "embedded" else [template]))
    grid = grid_named(grid).name
    items = [(context.settings, str(path), grid, template) for path in scans]
    outcomes = context.map("preprocessing", tasks.preprocess_scan, items)
    folder = Path(out)
    failures = []
    for (case, _), outcome in zip(unique_names(scans), outcomes, strict=True):
        if outcome.error:
            failures.append({"case": case, "error": outcome.error})
            continue
        stored = Path(outcome.value["path"])
        write_atomically(folder / f"{case}.nii.gz", lambda p, s=stored: shutil.copyfile(s, p))  # type: ignore[misc]
        write_json(outcome.value["provenance"], folder / f"{case}.json")
    _write_failures(failures, folder)
    return {"cases": len(scans), "failed": len(failures), "failures": failures, "out": out}


def segment_folder(context: Context, folder: str, out: str, engine: str) -> dict[str, Any]:
    """Segment the volumes of a folder: ``<case>_dseg.nii.gz``, volumes.csv, qc.csv."""
    prepared = prepare_folder(context, Path(folder).name, folder, "synthetic")
    volumes, qc, failed = segment_sources(context, engine, prepared.sources, prepared.cohort.name)
    store = Store(context.settings.workspace)
    for source in prepared.sources:
        if source.case_id not in failed:
            stored = store.path("labels", tasks.segmentation_key(source, engine))
            target = Path(out) / f"{source.case_id}_dseg.nii.gz"
            write_atomically(target, lambda p, s=stored: shutil.copyfile(s, p))  # type: ignore[misc]
    write_atomically(Path(out) / "volumes.csv", lambda p: anatomy.write_volumes(volumes, p))
    write_atomically(Path(out) / "qc.csv", lambda p: quality.write_qc(qc, p))
    failures = [{"case": row["case"], "error": row["reason"]} for row in prepared.rows if row["status"] != "ok"]
    failures += [{"case": case, "error": error} for case, error in failed.items()]
    _write_failures(failures, Path(out))
    return {"cases": len(prepared.rows), "failed": len(failures), "failures": failures, "out": out}


def features_folder(context: Context, folder: str, encoder: str, out: str, weights: str = "") -> dict[str, Any]:
    """Extract features of a folder's volumes into an npz: ``features`` (n, d), ``cases`` (n,)."""
    store = Store(context.settings.workspace)
    if weights:
        encoders.build(encoder, weights)  # a wrong file is refused once, before the images are read
    weights = str(Path(weights).absolute()) if weights else encoder_weights(store, encoder)
    prepared = prepare_folder(context, Path(folder).name, folder, "synthetic")
    outcomes = extract_features(context, prepared.sources, encoder, weights, prepared.cohort.name)
    good = [(s.case_id, o.value) for s, o in zip(prepared.sources, outcomes, strict=True) if not o.error]
    failures = [{"case": row["case"], "error": row["reason"]} for row in prepared.rows if row["status"] != "ok"]
    failures += [
        {"case": s.case_id, "error": o.error} for s, o in zip(prepared.sources, outcomes, strict=True) if o.error
    ]
    if not good:
        raise InputError(failures[0]["error"], folder)
    features = store.get("npz", gather_features(store, [key for _, key in good]))["features"]
    cases = tuple(case for case, _ in good)
    write_features(FeatureFile(features, cases, encoder, encoders.fingerprint(encoder, weights or None)), Path(out))
    return {"cases": len(prepared.rows), "failed": len(failures), "failures": failures, "out": out}


def quality_of_tables(
    real: str, synthetic: Mapping[str, str], fail_rate: float, threshold: float | None, out: str
) -> dict[str, Any]:
    """Gate generators by SynthSeg's QC CSVs; writes quality.csv."""
    tables = {name: quality.read_qc(path) for name, path in synthetic.items()}
    table = quality.quality_table(quality.read_qc(real), tables, fail_rate=fail_rate, threshold=threshold)
    write_csv(table, Path(out))
    return {"rows": len(table), "out": out}


def anatomy_of_tables(real: str, synthetic: Mapping[str, str], seed: int, out: str) -> dict[str, Any]:
    """Compare regional volumes from SynthSeg's CSVs; writes effect_sizes.csv."""
    first = anatomy.read_volumes(real)
    parts = [
        anatomy.effect_sizes(first, anatomy.read_volumes(path), seed=seed).assign(cohort=name)
        for name, path in synthetic.items()
    ]
    table = pd.concat(parts)[["cohort", *anatomy.EFFECT_COLUMNS]]
    write_csv(table, Path(out))
    return {"rows": len(table), "out": out}


def _write_failures(failures: list[dict[str, str]], folder: Path) -> None:
    """Leave the reasons beside the results; a file of an earlier run does not stay."""
    path = folder / "failures.csv"
    if failures:
        write_csv(pd.DataFrame(failures), path)
    else:
        path.unlink(missing_ok=True)


def claim_folder(folder: Path, record: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to mix two cohorts in one folder."""
    path = folder / PROVENANCE
    if path.is_file():
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError("it is no record of a cohort.", str(path), "Choose another folder.") from error
        differing = [key for key in settings if found.get(key) != settings[key]]
        if differing:
            known = ", ".join(f"{key} = {found[key]!r}" for key in differing if key in found)
            what = f"the folder holds another cohort: {known or 'made in another way'}."
            raise InputError(what, str(folder), "Choose another folder, or delete this one.")
    write_json(record, path)
