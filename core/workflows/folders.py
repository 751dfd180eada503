"""Scores of cohorts named on the command line, as folders of volumes or features files, without a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core import encoders, metrics
from core.errors import InputError
from core.pools import Context
from core.settings import refuse_outside
from core.store import FeatureFile, content_key, read_features, write_csv, write_json
from core.study import Cohort, Role, Study, StudySettings
from core.volume import HALF, grid_of
from core.workflows.cohorts import Prepared, folder_cohort
from core.workflows.copies import CopyCheck
from core.workflows.run import Run
from core.workflows.scoring import Encoded, Scoring, check_metrics
from core.workflows.tasks import Source

REAL, TRAINING = "real", "training"


def evaluate_folders(
    context: Context,
    real: str,
    synthetic: Mapping[str, str],
    out: str,
    encoder_names: Sequence[str] = (),
    names: Sequence[str] = (),
    training: str = "",
) -> dict[str, Any]:
    """Score folders of volumes, or features files, against each other.

    Writes metrics.csv (``out``) and, under the same name with the ending .json, what its columns cannot hold:
    details, fingerprints, gaps and warnings. With a training cohort also copies.csv and copy_check.csv beside it.

    Raises
    ------
    InputError
        Unknown metric or encoder, folders mixed with features files, features of different encoders or widths.
    CacheCorrupt
        A features file that cannot be used.
    """
    paths = {REAL: real, **synthetic, **({TRAINING: training} if training else {})}
    if reserved := {REAL, TRAINING} & set(synthetic):
        what = f"a synthetic cohort cannot be called {sorted(reserved)[0]!r}."
        raise InputError(what, "--synthetic", "Choose another name.")
    _check_names(encoder_names, names)
    for path in paths.values():
        refuse_outside(path.partition("*")[0])
    files = [name for name, path in paths.items() if Path(path).is_file()]
    if files and len(files) < len(paths):
        what = f"folders and features files are mixed: {', '.join(files)} came as a file."
        raise InputError(what, "--real, --synthetic, --training", "Give one kind for all.")
    score = _score_files if files else _score_folders
    scoring = score(context, paths, encoder_names, names)
    run, target = scoring.run, Path(out)
    run.folders = [target.parent]
    with context.stage(0.9, 1.0):
        if training:
            CopyCheck(scoring).check()
    write_csv(scoring.table(), target)
    record = {"details": scoring.in_order(scoring.details), "fingerprints": run.fingerprints}
    write_json({**record, "gaps": run.gaps, "warnings": run.warnings}, target.with_suffix(".json"))
    counts = {"rows": len(scoring.rows), "failed": run.failed(), "gaps": run.missing()}
    return {**counts, "missing": run.gaps, "out": out}


def _check_names(encoder_names: Collection[str], names: Collection[str]) -> None:
    for name in encoder_names:
        encoders.encoder_named(name)
    check_metrics(names, "--metric")


def _score_folders(
    context: Context, paths: Mapping[str, str], encoder_names: Sequence[str], names: Sequence[str]
) -> Scoring:
    cohorts = [folder_cohort(name, path, _role(name)) for name, path in paths.items()]
    settings = StudySettings(encoders=tuple(encoder_names)) if encoder_names else StudySettings()
    run = Run(context, _study(cohorts, settings, paths[REAL]), [])
    scoring = Scoring(run, names)
    with context.stage(0.0, 0.1):
        run.prepare()
    with context.stage(0.1, 0.7):
        scoring.score_features()
    with context.stage(0.7, 0.8):
        scoring.score_products()
    with context.stage(0.8, 0.9):
        scoring.score_volumes()
    return scoring


def _score_files(
    context: Context, paths: Mapping[str, str], encoder_names: Sequence[str], names: Sequence[str]
) -> Scoring:
    """Score features files: the metrics of features, under the encoder the files name."""
    contents = {name: read_features(Path(path)) for name, path in paths.items()}
    _check_alike(contents, paths)
    encoder = next((c.encoder for c in contents.values() if c.encoder), "file")
    if encoder_names and tuple(encoder_names) != (encoder,):
        what = f"the files hold features of {encoder!r}, not of {', '.join(encoder_names)}."
        raise InputError(what, "--encoder", "Leave the option out, or extract features with this encoder.")
    if only_volumes := [n for n in names if not _is_of_features(n)]:
        what = f"{only_volumes[0]} is measured on volumes, and features files were given."
        raise InputError(what, "--metric", "Give folders of volumes.")
    study = _study([Cohort(name, _role(name), ()) for name in paths], StudySettings(encoders=(encoder,)), paths[REAL])
    run = Run(context, replace(study, grid=replace(HALF, name="not recorded")), [])
    scoring = Scoring(run, names)
    scoring.encoders[encoder] = ("", next((c.weights for c in contents.values() if c.weights), ""))
    for cohort in study.cohorts:
        content, path = contents[cohort.name], paths[cohort.name]
        sha = run.store.file_hash(path)
        key = content_key("features file", 1, [sha], {})
        if not run.store.has("npz", key):
            run.store.put("npz", key, {"features": content.features})
        sources = (
            Source(case, path, content_key("row", 1, [sha], {"row": i}), "", "") for i, case in enumerate(content.cases)
        )
        run.cohorts.append(Prepared(cohort, tuple(sources), tuple({} for _ in content.cases)))
        scoring.encoded[encoder, cohort.name] = Encoded(key, content.cases)
    for index, prepared in enumerate(run.synthetic):
        with context.stage(0.9 * index / len(run.synthetic), 0.9 * (index + 1) / len(run.synthetic)):
            scoring.score_pair(prepared, encoder)
    return scoring


def _check_alike(contents: Mapping[str, FeatureFile], paths: Mapping[str, str]) -> None:
    """Refuse features that cannot be compared: other encoders, weights or widths, too few rows."""
    real = contents[REAL]
    for name, content in contents.items():
        advice = "Extract all features with one encoder."
        named = [(c.encoder, c.weights) for c in (real, content)]
        if all(encoder for encoder, _ in named) and named[0] != named[1]:
            if content.encoder != real.encoder:
                what = f"features of {content.encoder!r}; the real ones are of {real.encoder!r}."
            else:
                what = f"features of {content.encoder!r} with other weights than the real ones."
            raise InputError(what, paths[name], advice)
        widths = [c.features.shape[1] for c in (real, content)]
        if widths[0] != widths[1]:
            raise InputError(f"features have width {widths[1]}, the real ones {widths[0]}.", paths[name], advice)
        if len(content.features) < 2:
            what = f"{len(content.features)} rows; at least 2 are needed."
            raise InputError(what, paths[name], "Add volumes to the cohort.")
        if repeated := [case for case, n in Counter(content.cases).items() if n > 1]:
            what = f"{len(repeated)} cases are there twice, for example {repeated[0]}."
            raise InputError(what, paths[name], "Leave the repetitions out.")


def _is_of_features(name: str) -> bool:
    return any(metric.name == name and metric.inputs == "features" for metric in metrics.METRICS.values())


def _role(name: str) -> Role:
    return {REAL: "real", TRAINING: "training"}.get(name, "synthetic")  # type: ignore[return-value]


def _study(cohorts: Sequence[Cohort], settings: StudySettings, place: str) -> Study:
    by_role: dict[str, list[Cohort]] = {"real": [], "synthetic": [], "training": []}
    for cohort in cohorts:
        by_role[cohort.role].append(cohort)
    real, training = by_role["real"][0], next(iter(by_role["training"]), None)
    grid = grid_of([case.path for case in real.cases]) if real.cases else HALF
    return Study("folders", grid, real, tuple(by_role["synthetic"]), training, settings, Path(place))
