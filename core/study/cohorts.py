"""Cohorts on disk: which files are cases, who they are of, and why others are not."""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from core.errors import InputError
from core.participants import read_participants
from core.settings import refuse_outside, refuse_scan_outside
from core.study.spec import NO_TEXT, RAW_SUFFIXES, CohortSpec, check_name
from core.volume import SUFFIXES, case_name

Role = Literal["real", "training", "synthetic"]
SIDECARS = (".json", ".tsv", ".csv", ".txt", ".md", ".toml", ".bval", ".bvec")
PROVENANCE = "provenance.json"  # written beside volumes the product itself made
MOST_DEPTHS = 2  # each ** of a pattern walks all folders below, for each folder the last one found


@dataclass(frozen=True)
class Case:
    """One volume of one person; ``path`` is a file, or a folder for a raw DICOM series."""

    case_id: str
    path: Path
    participant: str = ""
    session: str = ""
    age: float | None = None
    sex: str = ""
    site: str = ""


@dataclass(frozen=True)
class Rejected:
    """A case that cannot be used: which, why, and what to do."""

    case_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Cohort:
    """Volumes judged together.

    Parameters
    ----------
    name : str
        Name on screen and in the CSVs.
    role : {"real", "training", "synthetic"}
        What the cohort is for.
    cases : tuple of Case
        In file-name order, the order the published quirks depend on.
    rejected : tuple of Rejected
        Files that were found but are no images.
    raw : bool
        True when the images still have to be preprocessed.
    orientation : str
        Axis codes that override the headers, or "".
    volumes, qc : Path or None
        SynthSeg's CSVs, when segmentation was done elsewhere.
    origin : str
        "simulated" or "control: …" for volumes this product made, else "".
    notes : tuple of str
        What does not match, in words (cases without participant row and the like).
    """

    name: str
    role: Role
    cases: tuple[Case, ...]
    rejected: tuple[Rejected, ...] = ()
    raw: bool = False
    orientation: str = ""
    volumes: Path | None = None
    qc: Path | None = None
    origin: str = ""
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name with its origin, so that simulated data are always named so."""
        return f"{self.name} ({self.origin})" if self.origin else self.name


def find_cohort(name: str, role: Role, spec: CohortSpec, base: Path) -> Cohort:
    """Find the images of one cohort.

    Parameters
    ----------
    name : str
        Cohort name.
    role : {"real", "training", "synthetic"}
        What the cohort is for.
    spec : CohortSpec
        ``images`` is a glob, a folder, or a BIDS dataset; relative to ``base``.
    base : Path
        Folder of study.toml.

    Returns
    -------
    Cohort

    Raises
    ------
    InputError
        When a table named in the spec is missing or broken, or a path leads nowhere or outside the data roots. Images
        that do so, as symlinks, are among the rejected.
    """
    pattern = base / spec.images
    if spec.images.count("**") > MOST_DEPTHS:
        raise InputError(f"more than {MOST_DEPTHS} times '**'.", spec.images, "Write a simpler pattern.")
    try:
        refuse_outside(fixed_part(pattern))
        paths, rejected = _find_images(pattern, raw=spec.raw)
    except (OSError, ValueError, re.error) as error:  # a name that is too long, for example
        raise InputError(f"no such pattern of files ({error}).", spec.images[:200], "Correct images.") from error
    cases = tuple(Case(case_id, path, *_bids_entities(path)) for case_id, path in unique_names(paths))
    nothing = f"No image found at {str(pattern)!r}. Put files there, or correct images in study.toml."
    notes: list[str] = [] if cases else [nothing]
    table = _participants_file(base, spec)
    if table is not None:
        cases, unmatched = _join_participants(cases, read_participants(table))
        notes += unmatched
    return Cohort(
        name=name,
        role=role,
        cases=cases,
        rejected=tuple(rejected),
        raw=spec.raw,
        orientation=spec.orientation,
        volumes=_table_file(base, spec.volumes),
        qc=_table_file(base, spec.qc),
        origin=_origin({path.parent for path in paths}),
        notes=tuple(notes),
    )


def _find_images(pattern: Path, *, raw: bool) -> tuple[list[Path], list[Rejected]]:
    suffixes = RAW_SUFFIXES if raw else SUFFIXES
    if not pattern.is_dir():
        found = [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True))]
    elif _is_bids(pattern):
        # Derivatives and other modalities of a BIDS dataset are no cases of this cohort.
        found = [
            p for p in _walk(pattern) if re.search(r"_T1w\.(nii|nii\.gz)$", p.name) and "derivatives" not in p.parts
        ]
    else:
        found = [Path(p) for p in sorted(glob.glob(str(pattern / "*")))]
        if not any(p.is_file() for p in found):
            found = _walk(pattern)
    paths, rejected = [], []
    for path in found:
        if path.name.lower().endswith(suffixes) or (raw and path.is_dir()):
            if reason := _reason_against(path):
                shown = str(path).encode("utf-8", "backslashreplace").decode()
                rejected.append(Rejected(Path(shown).name, shown, reason))
            else:
                paths.append(path)
        elif path.is_file() and not path.name.lower().endswith(SIDECARS):
            reason = f"not an image: expected {', '.join(suffixes)}. Convert or remove it."
            rejected.append(Rejected(path.name, str(path), reason))
    return paths, rejected


def _reason_against(path: Path) -> str:
    """Say why a file is not even looked at; "" when it may be."""
    if NO_TEXT.search(str(path)):
        return "the path holds line breaks or what is no text. Rename it."
    try:
        check_name(path.name)
        refuse_scan_outside(path)
    except InputError as error:
        return f"{error.what} {error.remedy}"
    return ""


def fixed_part(pattern: Path) -> Path:
    """Return the folders of a glob before its first wildcard; all of it where there is such a file or folder."""
    if pattern.exists():
        return pattern
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    return Path(*fixed)


def _walk(folder: Path) -> list[Path]:
    return [Path(p) for p in sorted(glob.glob(str(folder / "**" / "*"), recursive=True)) if Path(p).is_file()]


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() or any(folder.glob("sub-*/**/anat"))


def unique_names(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Name cases after their files; where names repeat, add the folder."""
    paths = list(paths)
    counts = Counter(case_name(path) for path in paths)
    names = [case_name(p) if counts[case_name(p)] == 1 else f"{p.parent.name}_{case_name(p)}" for p in paths]
    counts = Counter(names)
    final = [n if counts[n] == 1 else f"{n}~{index}" for index, n in enumerate(names)]
    return list(zip(final, paths, strict=True))


def _bids_entities(path: Path) -> tuple[str, str]:
    subject = re.search(r"(sub-[A-Za-z0-9]+)", path.name)
    session = re.search(r"(ses-[A-Za-z0-9]+)", path.name)
    return (subject.group(1) if subject else "", session.group(1) if session else "")


def _participants_file(base: Path, spec: CohortSpec) -> Path | None:
    bids = base / spec.images / "participants.tsv"
    if not spec.participants and not bids.is_file():
        return None
    path = base / spec.participants if spec.participants else bids
    refuse_outside(path)
    return path


def _table_file(base: Path, name: str) -> Path | None:
    if not name:
        return None
    path = base / name
    refuse_outside(path)
    if not path.is_file():
        raise InputError("there is no such table.", str(path), "Correct the path in study.toml.")
    return path


def _join_participants(cases: tuple[Case, ...], table: pd.DataFrame) -> tuple[tuple[Case, ...], list[str]]:
    rows: dict[tuple[str, str], dict[Hashable, object]] = {}
    for row in table.to_dict("records"):
        name = str(row["participant_id"]).removeprefix("sub-")
        session = str(row["session"]).removeprefix("ses-")
        rows[name, session] = row
        rows.setdefault((name, ""), row)
    joined: list[Case] = []
    missing: list[str] = []
    for case in cases:
        name = (case.participant or case.case_id).removeprefix("sub-")
        session = case.session.removeprefix("ses-")
        found = rows.get((name, session)) or rows.get((name, ""))
        if found is None:
            missing.append(case.case_id)
            joined.append(case)
            continue
        age = float(str(found["age"]))
        joined.append(
            Case(
                case.case_id,
                case.path,
                str(found["participant_id"]),
                case.session or str(found["session"]),
                None if np.isnan(age) else age,
                str(found["sex"]),
                str(found["site"]),
            )
        )
    unused = set(table["participant_id"]) - {case.participant for case in joined}
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} images have no row in the participants table, for example {', '.join(missing[:5])}."
        )
    if unused:
        notes.append(f"{len(unused)} participants have no image, for example {', '.join(sorted(unused)[:5])}.")
    return tuple(joined), notes


def _origin(folders: set[Path]) -> str:
    """Label that the product wrote beside volumes it made itself."""
    labels = set()
    for folder in folders:
        try:
            label = str(json.loads((folder / PROVENANCE).read_text(encoding="utf-8")).get("label", ""))
            labels.add(check_name(label))
        except (OSError, ValueError, AttributeError, RecursionError, InputError):
            labels.add("")
    return ", ".join(sorted(labels - {""}))
