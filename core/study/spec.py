"""The file study.toml: what may stand in it, reading it as data, writing it so that comments stay."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from core.errors import InputError
from core.settings import refuse_outside
from core.volume import SUFFIXES

RAW_SUFFIXES = (*SUFFIXES, ".nrrd")
LARGEST_FILE = 2**20  # bytes of a study.toml
MOST_PROBLEMS = 10  # listed of a study file
NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, bytes that are no Unicode
_LINK = re.compile(r"\]\(|<\s*/?a\b", re.IGNORECASE)  # links and pictures of others, where pages show a name


def check_name(name: str) -> str:
    """Return a name of a study, cohort or case.

    Raises
    ------
    InputError
        It holds control characters, or a link.
    """
    if NO_TEXT.search(name) or _LINK.search(name):
        what = "a name holds a link." if _LINK.search(name) else "a name holds line breaks or what is no text."
        raise InputError(what, name.encode("unicode_escape").decode()[:200], "Rename it.")
    return name


def _as_text(text: str) -> str:
    if NO_TEXT.search(text):
        raise ValueError("holds line breaks or what is no text")
    return text


def _as_name(text: str) -> str:
    try:
        return check_name(text)
    except InputError as error:
        raise ValueError(error.what) from error


Text = Annotated[str, AfterValidator(_as_text), Field(max_length=4000)]
Name = Annotated[str, AfterValidator(_as_name), Field(max_length=200)]


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


def _plain(message: str) -> str:
    return {"Extra inputs are not permitted": "unknown key", "Field required": "missing"}.get(message, message)
