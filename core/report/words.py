"""The words of the report: methods from what is recorded, limits, and what the files hold of single people."""

from __future__ import annotations

import re
from typing import Any

from core import __version__
from core.encoders import ENCODERS, label_named
from core.segmentation import SEGMENTERS
from core.study import Study
from core.workflows import Results
from core.workflows.judging import suspicious_copies

PAPER = (
    "Wu, Peng, Li, Zhang, Pohl: Evaluating the Quality of Brain MRI Generators. MICCAI 2024. "
    "doi:10.1007/978-3-031-72117-5_28"
)
MOST_GAPS, MOST_WARNINGS = 20, 10  # listed among the limits


def methods(study: Study, results: Results) -> str:
    """Return the methods paragraph, from what is recorded with the results."""
    settings, record = results.provenance.get("settings", {}), results.provenance
    labels = {cohort.name: cohort.label for cohort in study.cohorts}  # they say what is simulated, and what a control
    used = "; ".join(
        f"{labels.get(c['name'], c['name'])}, {c['role']}, {c['used']} volumes" for c in record.get("cohorts", [])
    )
    encoders = ", ".join(label_named(name) for name in settings.get("encoders", study.settings.encoders))
    engine = SEGMENTERS.get(settings.get("segmenter", study.settings.segmenter))
    imported = [cohort.name for cohort in study.cohorts if cohort.volumes or cohort.qc]
    tables = f" Imported tables of volumes or scores: {', '.join(imported)}." if imported else ""
    shape, spacing = "×".join(map(str, study.grid.shape)), study.grid.spacing
    return (
        f"The cohorts {used} were compared on a grid of {shape} voxels of {spacing:g} mm by SynthScope "
        f"{record.get('code', __version__)}, after Wu et al. (2024). Features: {encoders}. "
        f"Segmentation: {engine.label if engine else settings.get('segmenter', 'imported')} "
        f"({record.get('engine', 'no fingerprint')}).{tables} At most "
        f"{settings.get('qc_fail_rate', study.settings.qc_fail_rate):.0%} of the volumes may fail the quality gate. "
        f"Intervals: 95 %, {settings.get('n_boot', study.settings.n_boot)} bootstraps, seed "
        f"{settings.get('seed', study.settings.seed)}. Regional volumes were adjusted for total intracranial volume."
    )


def limits(study: Study, results: Results, drop_individuals: bool) -> list[str]:
    """Return what a reader must know before believing the numbers; gaps may name a case."""
    kept = without_people(study, results) if drop_individuals else results.provenance
    lines = []
    if made := [c.label for c in study.cohorts if c.origin]:
        lines.append(f"Made by this software, not by a scanner: {', '.join(made)}.")
    gaps = _together([(f"{gap['what']}: {gap['reason']}", str(gap["cohort"])) for gap in kept.get("gaps", [])])
    lines += [f"{', '.join(dict.fromkeys(cohorts))}: {text}" for text, cohorts in list(gaps.items())[:MOST_GAPS]]
    lines += [f"{len(gaps) - MOST_GAPS} more gaps are in the bundle."] if len(gaps) > MOST_GAPS else []
    reasons = sorted({str(warning["reason"]) for warning in kept.get("warnings", [])})
    alike = _together([(re.sub(r"\d+", "#", reason), reason) for reason in reasons])  # they differ in N and width alone
    for first, *others in list(alike.values())[:MOST_WARNINGS]:
        lines.append(first + (f" (and {len(others)} more, of other N or width)" if others else ""))
    return [*lines, "Scores depend on N and encoder; compare them only within this report.", "Research use only."]


def _together(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Gather the second of each pair under the first, in their order."""
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def hidden_cohorts(study: Study) -> set[str]:
    """Return the cohorts of real people."""
    return {cohort.name for cohort in study.cohorts if cohort.role != "synthetic"}


def without_people(study: Study, results: Results) -> dict[str, Any]:
    """Return the provenance without anything that names, or is a hash of, a single real or training scan."""
    record, hidden = dict(results.provenance), hidden_cohorts(study)
    cases = [case for cohort in study.cohorts if cohort.name in hidden for case in cohort.cases]
    people = {case.case_id for case in cases} | {case.participant for case in cases if case.participant}
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(people)) or r"(?!)")
    inputs = record.get("inputs", {})
    record["inputs"] = {key: sha for key, sha in inputs.items() if key.partition("/")[0] not in hidden}
    for kind in ("gaps", "warnings"):
        items = [item for item in record.get(kind, []) if item.get("cohort") not in hidden]
        record[kind] = [item for item in items if not pattern.search(f"{item.get('what')} {item.get('reason')}")]
    record["cohorts"] = [
        {**item, "notes": []} if item.get("name") in hidden else item for item in record.get("cohorts", [])
    ]
    return record


def contents(study: Study, results: Results, drop_individuals: bool) -> list[str]:
    """Return what the files hold of single people, in plain words."""
    if not drop_individuals:
        return [
            "Pictures, case names and quality scores of single volumes of the real cohorts, as file names call them.",
            "The bundle holds the name and content hash of every input file, and the paths of study.toml.",
        ]
    lines = [
        "No picture, case name, point or content hash of a single volume of the real or the training cohort.",
        "Of the real cohorts there remain N, means, intervals, floors, pass rates and effect sizes; with few volumes "
        "even these say something of each.",
        "Synthetic volumes are shown one by one. The bundle keeps the paths of study.toml, which tell folder names.",
    ]
    names = {c.name: c.label for c in study.cohorts}
    copied = [names.get(name, name) for name in dict.fromkeys(suspicious_copies(results)["cohort"])]
    if copied:
        lines.append(f"May hold copies of training scans, and their pictures are shown: {', '.join(copied)}.")
    elif results.copy_check.empty:
        lines.append("Whether a synthetic volume is a copy of a training scan was not checked.")
    return lines


def references(study: Study) -> list[str]:
    """Return the paper, the encoders' sources and the engine's."""
    engine = SEGMENTERS.get(study.settings.segmenter)
    used = [ENCODERS[name].reference for name in study.settings.encoders if name in ENCODERS]
    return list(dict.fromkeys([PAPER, *used, *([engine.reference] if engine else [])]))
