"""Cases, cohorts and studies; study.toml in and out. Knows no results."""

from core.study.cohorts import PROVENANCE, Case, Cohort, Role, find_cohort, unique_names
from core.study.spec import (
    CohortSpec,
    StudySettings,
    StudySpec,
    absolute,
    check_name,
    make_spec,
    read_spec,
    renamed,
    same_spec,
    write_spec,
)
from core.study.studies import Study, find_study, read_study, seen_of, times_of

__all__ = [
    "PROVENANCE",
    "Case",
    "Cohort",
    "CohortSpec",
    "Role",
    "Study",
    "StudySettings",
    "StudySpec",
    "absolute",
    "check_name",
    "find_cohort",
    "find_study",
    "make_spec",
    "read_spec",
    "read_study",
    "renamed",
    "same_spec",
    "seen_of",
    "times_of",
    "unique_names",
    "write_spec",
]
