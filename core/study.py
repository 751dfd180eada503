"""Cases, cohorts and studies; study.toml in and out. Knows no results."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from core.errors import InputError
from core.participants import read_participants
from core.settings import refuse_outside, refuse_scan_outside
from core.volume import SUFFIXES, Grid, case_name, grid_named

Role = Literal["real", "training", "synthetic"]
RAW_SUFFIXES = (*SUFFIXES, ".nrrd")
SIDECARS = (".json", ".tsv", ".csv", ".txt", ".md", ".toml", ".bval", ".bvec")
_T1W = re.compile(r"_T1w\.(nii|nii\.gz)$")
PROVENANCE = "provenance.json"  # written beside volumes the product itself made
LARGEST_FILE = 2**20  # bytes of a study.toml
MOST_DEPTHS = 2  # each ** of a pattern walks all folders below, for each folder the last one found
MOST_PROBLEMS = 10  # listed of a study file
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, bytes that are no Unicode


_LINK = re.compile(r"\]\(|<\s*/?a\b", re.IGNORECASE)  # links and pictures of others, where pages show a name


def check_name(name: str) -> str:
    """Return a name of a study, cohort or case.

    Raises
    ------
    InputError
        It holds control characters, or a link.
    """
    if _NO_TEXT.search(name) or _LINK.search(name):
        what = "a name holds a link." if _LINK.search(name) else "a name holds line breaks or what is no text."
        raise InputError(what, name.encode("unicode_escape").decode()[:200], "Rename it.")
    return name


def _as_text(text: str) -> str:
    if _NO_TEXT.search(text):
        raise ValueError("holds line breaks or what is no text")
    return text


def _as_name(text: str) -> str:
    try:
        return check_name(text)
    except InputError as error:
        raise ValueError(error.what) from error


Text = Annotated[str, AfterValidator(_as_text), Field(max_length=4000)]
Name = Annotated[str, AfterValidator(_as_name), Field(max_length=200)]


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


class StudySettings(BaseModel):
    """The ``[settings]`` table of study.toml: every choice that changes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoders: tuple[Text, ...] = ("random-r50", "deepbet", "embedded")
    metrics: tuple[Text, ...] = ()  # names; all without it
    segmenter: Text = "embedded"
    qc_fail_rate: float = Field(default=0.05, gt=0, lt=1)
    qc_threshold: float | None = Field(default=None, ge=0, le=1)
    template: Text = "embedded"
    seed: int = Field(default=0, ge=0)
    n_boot: int = Field(default=200, ge=0, le=100_000)


class CohortSpec(BaseModel):
    """One cohort's table of study.toml, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Text
    raw: bool = False
    orientation: Text = ""
    participants: Text = ""
    volumes: Text = ""
    qc: Text = ""


class StudySpec(BaseModel):
    """study.toml, as written: paths are still relative to the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    grid: Literal["full", "half"] = "full"
    real: CohortSpec
    training: CohortSpec | None = None
    synthetic: dict[Name, CohortSpec] = Field(default_factory=dict)
    settings: StudySettings = StudySettings()


@dataclass(frozen=True)
class Study:
    """A real cohort, the synthetic cohorts judged against it, and the settings.

    Parameters
    ----------
    name : str
        Title on screen.
    grid : Grid
        Grid all volumes are brought to.
    real : Cohort
        Test cohort.
    synthetic : tuple of Cohort
        In the order of study.toml.
    training : Cohort or None
        What the generators saw.
    settings : StudySettings
        Encoders, segmenter, gate, template, seed.
    path : Path
        The study.toml it came from.
    """

    name: str
    grid: Grid
    real: Cohort
    synthetic: tuple[Cohort, ...]
    training: Cohort | None
    settings: StudySettings
    path: Path

    @property
    def cohorts(self) -> tuple[Cohort, ...]:
        """Real, then synthetic, then training cohort."""
        return (self.real, *self.synthetic, *((self.training,) if self.training else ()))

    def cohort(self, name: str) -> Cohort:
        """Return the cohort called ``name``.

        Raises
        ------
        InputError
            When there is none.
        """
        for cohort in self.cohorts:
            if cohort.name == name:
                return cohort
        raise InputError(
            f"no cohort {name!r}.", str(self.path), f"Choose one of: {', '.join(c.name for c in self.cohorts)}."
        )


def read_spec(path: Path | str) -> StudySpec:
    """Parse study.toml without looking at the data.

    Raises
    ------
    InputError
        Missing file, an image or another file that is no text, broken or absurd TOML, or wrong keys and values, all
        problems at once; a path that leads outside the data roots.
    """
    path = Path(path)
    refuse_outside(path)
    if path.is_dir():
        path = path / "study.toml"
    if not path.is_file():
        raise InputError("there is no such study file.", str(path), "Give the path of a study.toml.")
    refuse_outside(path)  # the file in the folder may be a symlink
    _refuse_what_is_no_text(path)
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise InputError(f"{size:,} bytes are no study file.", str(path), "Give the path of a study.toml.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, deep nesting
        raise InputError(f"not valid TOML ({error}).", str(path), "Correct the line named.") from error
    return make_spec(content, str(path))


def _refuse_what_is_no_text(path: Path) -> None:
    """Say what a file is, before a parser says which byte of it is wrong."""
    with path.open("rb") as file:
        head = file.read(512)
    suffix = next((suffix for suffix in RAW_SUFFIXES if path.name.lower().endswith(suffix)), "")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("text in UTF-16, not in UTF-8.", str(path), "Save it as UTF-8 in your editor.")
    if suffix:
        remedy = "A study names the folders of its images: make one on the page Studies, or give the path of its file."
        raise InputError(f"this is an image ({suffix}), not a study.", str(path), remedy)
    if b"\0" in head or head.startswith(b"\x1f\x8b"):  # gzip
        raise InputError("this is not a text file, so not a study.", str(path), "Give the path of a study.toml.")


def make_spec(content: Mapping[str, object], where: str) -> StudySpec:
    """Return a study's spec.

    Raises
    ------
    InputError
        Wrong keys and values; all problems at once.
    """
    try:
        return StudySpec.model_validate(content)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {_plain(e['msg'])}"[:300] for e in error.errors()]
        more = [f"{len(found) - MOST_PROBLEMS} more"] if len(found) > MOST_PROBLEMS else []
        problems = "; ".join([*found[:MOST_PROBLEMS], *more])
        raise InputError(problems + ".", where, "Correct these entries of the study file.") from error


def read_study(path: Path | str) -> Study:
    """Read study.toml and find the files of its cohorts.

    Parameters
    ----------
    path : path
        study.toml, or the folder that holds it.

    Returns
    -------
    Study
        A synthetic cohort without images is kept, with the reason in its ``notes``.

    Raises
    ------
    InputError
        As `read_spec`; no real image; a broken participants table; reserved or equal cohort names.
    """
    spec = read_spec(path)
    path = Path(path).resolve()
    return find_study(spec, path / "study.toml" if path.is_dir() else path)


def find_study(spec: StudySpec, path: Path) -> Study:
    """Find the files of the cohorts of a study whose study.toml is, or will be, at ``path``; raises as `read_study`."""
    reserved = {"real", "training"} & set(spec.synthetic)
    if reserved:
        raise InputError(
            f"a synthetic cohort cannot be called {sorted(reserved)[0]!r}.", str(path), "Choose another name."
        )
    if spec.settings.template != "embedded":
        refuse_outside(path.parent / spec.settings.template)
    real = find_cohort("real", "real", spec.real, path.parent)
    if not real.cases:
        raise InputError("the real cohort has no image. " + " ".join(real.notes), str(path), "Correct real.images.")
    return Study(
        name=spec.name,
        grid=grid_named(spec.grid),
        real=real,
        synthetic=tuple(find_cohort(n, "synthetic", c, path.parent) for n, c in spec.synthetic.items()),
        training=find_cohort("training", "training", spec.training, path.parent) if spec.training else None,
        settings=spec.settings,
        path=path,
    )


def seen_of(study: Study) -> tuple[tuple[str, int], ...]:
    """Return the folders and tables a study was read from, and their times: they change when files come or go.

    A file that comes into a folder none of whose files is a case is not seen by it.
    """
    spec, base = read_spec(study.path), study.path.parent
    places = {study.path}
    for cohort in study.cohorts:
        found = {case.path.parent for case in cohort.cases} | {Path(item.path).parent for item in cohort.rejected}
        if found:
            top = Path(os.path.commonpath(found))
            found |= {folder for one in found for folder in one.parents if folder.is_relative_to(top)}
        places |= found | {folder / PROVENANCE for folder in found}
    for one in (spec.real, *spec.synthetic.values(), *([spec.training] if spec.training else [])):
        whole = base / one.images
        places |= {_fixed_part(whole), whole / "participants.tsv", whole / "dataset_description.json"}
        places |= {base / name for name in (one.participants, one.volumes, one.qc) if name}
    return tuple((str(place), _time_of(place)) for place in sorted(places))


def times_of(seen: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Return the same places with their times now."""
    return tuple((place, _time_of(place)) for place, _ in seen)


def _time_of(place: str | Path) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except (OSError, ValueError):
        return 0


def absolute(spec: StudySpec, base: Path) -> StudySpec:
    """Return a spec whose paths no longer depend on where it lies: they are those of a study.toml in ``base``."""

    def cohort(item: CohortSpec) -> CohortSpec:
        paths = {name: getattr(item, name) for name in ("images", "participants", "volumes", "qc")}
        return item.model_copy(update={name: str(base / path) for name, path in paths.items() if path})

    template = spec.settings.template
    settings = spec.settings.model_copy(
        update={"template": template if template == "embedded" else str(base / template)}
    )
    return spec.model_copy(
        update={
            "real": cohort(spec.real),
            "training": cohort(spec.training) if spec.training else None,
            "synthetic": {name: cohort(item) for name, item in spec.synthetic.items()},
            "settings": settings,
        }
    )


def same_spec(one: StudySpec, other: StudySpec) -> bool:
    """Tell whether two specs are the same, the order of their cohorts included."""
    return one == other and list(one.synthetic) == list(other.synthetic)


def renamed(former: StudySpec, spec: StudySpec) -> dict[str, str]:
    """Return old to new name of the synthetic cohorts that differ in nothing but their name."""
    came = {name: cohort for name, cohort in spec.synthetic.items() if name not in former.synthetic}
    names: dict[str, str] = {}
    for old, cohort in former.synthetic.items():
        new = next((name for name in came if came[name] == cohort), None) if old not in spec.synthetic else None
        if new is not None:
            names[old] = new
            del came[new]
    return names


def write_spec(spec: StudySpec, path: Path | str) -> None:
    """Write study.toml: defaults are left out of a new file, and an old one keeps all that did not change.

    Raises
    ------
    InputError
        The file cannot be written; the old one is left as it was.
    """
    path = Path(path)
    content = {"name": spec.name, "grid": spec.grid, **spec.model_dump(exclude_defaults=True, exclude_none=True)}
    text = tomlkit.dumps(content)
    with suppress(Exception):  # no file yet, or one that is written as tomlkit cannot change it
        changed = _changed_text(path.read_text(encoding="utf-8"), content, spec.model_dump(exclude_none=True))
        if same_spec(make_spec(tomllib.loads(changed), str(path)), spec):
            text = changed
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        what = f"the study file cannot be written ({error.strerror})."
        raise InputError(what, str(path), "Free disk space, or ask for the right to write there.") from error


def _changed_text(text: str, content: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return the text of a study file with another content: what did not change keeps its comments and its place."""
    document = tomlkit.parse(text)
    old, cohorts = document.get("synthetic", {}), content.get("synthetic", {})
    gone = {name: old[name] for name in old if name not in cohorts}
    kept, added = [name for name in old if name not in gone], [name for name in cohorts if name not in old]
    if list(cohorts) != kept + added or (gone and added):  # else each change has its place in the file as it is
        table = tomlkit.table(is_super_table=True)
        for name, cohort in cohorts.items():
            former = next((other for other in gone if gone[other] == cohort), None)  # only its name is another
            table[name] = old[name] if name in old else gone.pop(former, cohort)
        document["synthetic"] = table
    _update_table(document, content, whole)
    return tomlkit.dumps(document)


def _update_table(table: MutableMapping[str, Any], content: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Change what differs in a TOML table; ``content`` is what must stand in it, ``whole`` holds the defaults too."""
    for key in set(table) - set(whole):
        del table[key]
    for key, value in whole.items():
        if key in table and isinstance(value, Mapping):
            _update_table(table[key], content.get(key, {}), value)
        elif key in table and table[key] != value:
            table[key] = value
        elif key not in table and key in content:
            table[key] = content[key]


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
        refuse_outside(_fixed_part(pattern))
        paths, rejected = _find_images(pattern, raw=spec.raw)
    except (OSError, ValueError, re.error) as error:  # a name that is too long, for example
        raise InputError(f"no such pattern of files ({error}).", spec.images[:200], "Correct images.") from error
    cases = tuple(Case(case_id, path, *_bids_entities(path)) for case_id, path in unique_names(paths))
    notes: list[str] = [] if cases else [f"No image found at {spec.images!r}."]
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
    if _NO_TEXT.search(str(path)):
        return "the path holds line breaks or what is no text. Rename it."
    try:
        check_name(path.name)
        refuse_scan_outside(path)
    except InputError as error:
        return f"{error.what} {error.remedy}"
    return ""


def _fixed_part(pattern: Path) -> Path:
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


def _plain(message: str) -> str:
    return {"Extra inputs are not permitted": "unknown key", "Field required": "missing"}.get(message, message)


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
