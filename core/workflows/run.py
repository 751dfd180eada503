"""What all steps of an evaluation share: the prepared cohorts, the gaps, the folders written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core import __version__, segmentation
from core.errors import InputError
from core.pools import Context
from core.store import Store, write_csv, write_json
from core.study import PROVENANCE, Cohort, Study
from core.workflows.cohorts import Prepared, prepare
from core.workflows.results import CASE_COLUMNS

NO_TRAINING = "no training cohort is given, so no copy check"  # a gap on screen, but nothing that failed


def reading_of(cohort: Cohort, study: Path) -> dict[str, Any]:
    """Return how study.toml has a cohort read; its tables as seen from there."""
    tables = {
        name: path and os.path.relpath(path, study.parent)
        for name, path in (("volumes", cohort.volumes), ("qc", cohort.qc))
    }
    return {"raw": cohort.raw, "orientation": cohort.orientation, **tables}


class Run:
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

    @property
    def real(self) -> Prepared:
        """The real cohort."""
        return self.cohorts[0]

    @property
    def synthetic(self) -> list[Prepared]:
        """The synthetic cohorts that have a usable volume."""
        return [p for p in self.cohorts if p.cohort.role == "synthetic" and p.sources]

    @property
    def training(self) -> Prepared | None:
        """The training cohort, None when the study has none or none of its volumes can be used."""
        return next((p for p in self.cohorts if p.cohort.role == "training" and p.sources), None)

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table to every folder."""
        for folder in self.folders:
            write_csv(table, folder / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file to every folder."""
        for folder in self.folders:
            write_json(value, folder / name)

    def gap(self, cohort: str, what: str, reason: str) -> None:
        """Note what is missing from the results, and why."""
        item = {"cohort": cohort, "what": what, "reason": reason}
        if item not in self.gaps:
            self.gaps.append(item)
            self.context.log(f"{cohort}: {what}: {reason}")

    def warn(self, cohort: str, what: str, reason: str) -> None:
        """Note a number that is there and needs care, and why."""
        item = {"cohort": cohort, "what": what, "reason": reason}
        if item not in self.warnings:
            self.warnings.append(item)

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
        known = {source.sha: source.case_id for source in self.real.sources}
        for prepared in self.synthetic:
            if same := [known[source.sha] for source in prepared.sources if source.sha in known]:
                what = f"{len(same)} of {len(prepared.sources)} volumes are real ones, for example {same[0]}"
                self.warn(prepared.cohort.name, "cohort", f"{what}: its scores say nothing about a generator")
                self.context.log(f"warning: {prepared.cohort.name}: {what}")

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
                    "read": reading_of(p.cohort, self.study.path),
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
        self.write_json(PROVENANCE, record)

    def failed(self) -> int:
        """Count cases that could not be used."""
        rejected = sum(len(p.rows) - len(p.sources) for p in self.cohorts)
        lost = {(gap["cohort"], gap["what"].partition(" of ")[2]) for gap in self.gaps if " of " in gap["what"]}
        return rejected + len(lost)

    def missing(self) -> int:
        """Count the numbers that were asked for and are not there."""
        return sum(gap["reason"] != NO_TRAINING for gap in self.gaps)

    def finish(self) -> dict[str, Any]:
        """Mark the tables as complete and count."""
        self.write_provenance(complete=True)
        counts = {"cases": sum(len(p.rows) for p in self.cohorts), "failed": self.failed(), "gaps": self.missing()}
        return {**counts, "out": str(self.folders[-1])}
