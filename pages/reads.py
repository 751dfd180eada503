"""Cached reads of a study and its results, and what is kept of them: tables and figures made once for all sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from core.settings import from_environment
from core.study import Study, read_study, seen_of, times_of
from core.volume import Volume
from core.workflows import Results, load_case, load_case_labels, read_results
from core.workflows.judging import cohort_verdicts
from core.workflows.ranking import rank_scores
from core.workflows.results import results_stamp as stamp_of
from core.workflows.results import source_of
from core.workflows.verdicts import Verdict, verdicts
from core.workflows.viewing import case_files, png_file, thumbnail

Stamp = tuple[tuple[str, int], ...]  # files and when they were written

LOOK_SECONDS = 2.0  # until new files of a study are seen
STUDY_SECONDS = 60.0  # until those are seen that come into a folder without cases


def results_stamp(path: str) -> Stamp:
    """Return the names and times of a study's result files, which change whenever a result does."""
    return stamp_of(from_environment(), path)


def study_version(path: str) -> int:
    """Return a number that changes with the study file."""
    file = Path(path)
    return file.stat().st_mtime_ns if file.exists() else 0


def cached_study(path: str, version: int) -> Study:
    """Read a study, which looks for the files of every cohort: again once files have come or gone."""
    study, seen, read = _known_study(path, version)
    if files_changed(path, read, seen):
        _known_study.clear(path, version)
        study, *_ = _known_study(path, version)
    return study


@st.cache_resource(max_entries=16, ttl=STUDY_SECONDS, show_spinner=False)
def _known_study(path: str, version: int) -> tuple[Study, Stamp, int]:
    del version
    begin = time.time_ns()
    study = read_study(path)
    seen = seen_of(study)
    return study, seen if all(changed < begin for _, changed in seen) else (), begin  # (): it changed meanwhile


@st.cache_resource(max_entries=16, ttl=LOOK_SECONDS, show_spinner=False)
def files_changed(path: str, read: int, _seen: Stamp) -> bool:
    """Look whether the folders of a study changed since it was ``read``: once for all who look within some seconds."""
    del path, read
    return not _seen or times_of(_seen) != _seen


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_ranks(path: str, stamp: Stamp) -> pd.DataFrame:
    """Rank the cohorts by every score."""
    return rank_scores(cached_results(path, stamp))


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_verdicts(path: str, stamp: Stamp, version: int) -> list[Verdict]:
    """Judge every synthetic cohort; ``version`` is that of the study file."""
    return verdicts(cached_study(path, version), cached_results(path, stamp))


@st.cache_resource(max_entries=8, show_spinner=False)
def cached_results(path: str, stamp: Stamp) -> Results:
    """Read a study's results, not to be written into; ``stamp`` makes new files be read again."""
    del stamp
    return read_results(from_environment(), path)


@st.cache_resource(max_entries=512, show_spinner=False)
def kept(what: str, of: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    """Return what ``_make`` makes of the results and choices in ``of``: made once, and not to be written into.

    ``of`` begins with `basis` where it is made of results.
    """
    return _make()


def basis(study: Study) -> tuple[Any, ...]:
    """Return what tables and figures of a study change with: its results and the names of its cohorts."""
    path = str(study.path)
    return path, results_stamp(path), tuple(cohort.label for cohort in study.cohorts)


def kept_of_files(what: str, study: Study, make: Callable[[], Any]) -> Any:
    """Return what is made of a study's results and files, which may change while the results do not; see `kept`."""
    # Kept beside the study, whose id is then that of no other one.
    _, made = kept(what, (*basis(study), id(study)), lambda: (study, make()))
    return made


def counts_of(study: Study, results: Results) -> pd.DataFrame:
    """Return what `cohort_verdicts` counts for every cohort of the study, by name; not to be written into."""
    names = [cohort.name for cohort in study.cohorts]
    return kept("counts", basis(study), lambda: cohort_verdicts(results, names))


@st.cache_data(max_entries=12, show_spinner=False)
def cached_case(path: str, cohort: str, case: str, version: int) -> tuple[Volume, Volume | None]:
    """Load a volume and its label map; ``version`` makes a changed file be read again."""
    del version
    study = cached_study(path, study_version(path))
    return load_case(from_environment(), study, cohort, case), load_case_labels(from_environment(), study, cohort, case)


@st.cache_resource(max_entries=512, show_spinner=False)
def cached_planes(path: str, cohort: str, case: str, version: int) -> dict[str, bytes]:
    """Return the three middle planes of a case as PNG files."""
    del version
    planes = thumbnail(
        from_environment(), source_of(from_environment(), cached_study(path, study_version(path)), cohort, case)
    )
    return {name: png_file(plane) for name, plane in planes.items()}


@st.cache_data(max_entries=64, show_spinner=False)
def cached_files(path: str, cohort: str, case: str, version: int) -> tuple[bytes, bytes | None]:
    """Return a case and its label map as the viewer's files."""
    del version
    return case_files(from_environment(), cached_study(path, study_version(path)), cohort, case)


def case_version(study: Study, results: Results, cohort: str, case: str) -> int:
    """Return a number that changes with the case's file, or when its segmentation is known."""
    files = [found.path for found in study.cohort(cohort).cases if found.case_id == case]
    changed = max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
    return changed + len(results.volumes)
