"""The studies a workspace knows, and making new ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from core import jobs
from core.errors import InputError
from core.settings import Settings, data_roots, refuse_outside
from core.store import Store, alone, write_json
from core.study import StudySpec, absolute, find_study, read_spec, read_study, same_spec, write_spec
from core.workflows.demo import demo_folder
from core.workflows.evaluation import check_choices


def known_studies(settings: Settings) -> dict[str, str]:
    """Return path of study.toml to title, the demo first, then the newest; deleted files are left out.

    Studies of one name have their folders in the title: no two titles are the same.
    """
    found = {str(demo_folder(settings) / "study.toml"): "Demo study"}
    for path in _remembered(settings):
        if Path(path).is_file():
            found.setdefault(path, _title(path))
    times = Counter(found.values())
    return {path: title if times[title] == 1 else f"{title} ({Path(path).parent})" for path, title in found.items()}


def remember_study(settings: Settings, path: str) -> str:
    """Add a study to the workspace's list; return the path of its study.toml.

    Raises
    ------
    InputError
        See `core.study.read_study`.
    """
    study = str(read_study(path).path)
    folder = Store(settings.workspace).folder()
    with alone(folder / "studies.lock"):  # else one of two that are added at once is lost
        paths = [study, *(other for other in _remembered(settings) if other != study)]
        write_json(paths, folder / "studies.json")
    return study


def create_study(settings: Settings, folder: str, spec: StudySpec) -> str:
    """Write study.toml into ``folder`` and remember it.

    Raises
    ------
    InputError
        A folder without parent, outside the data roots, or with a study.toml, or a study that cannot be read; then
        nothing is left.
    """
    path = Path(folder).expanduser() / "study.toml"
    refuse_outside(path)
    if not path.parent.parent.is_dir():
        raise InputError("there is no such folder.", str(path.parent.parent), "Correct the path.")
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        raise InputError("the folder has a study.toml already.", str(path), "Open it, or choose another folder.")
    write_spec(spec, path)
    try:
        return remember_study(settings, str(path))
    except InputError:
        path.unlink()
        raise


def why_fixed(settings: Settings, path: str) -> str:
    """Say why a study cannot be changed, but only be saved as another one; "" when it can."""
    if Path(path) == demo_folder(settings) / "study.toml":
        return "The demo study stays as it is."
    if not os.access(Path(path).parent, os.W_OK):
        return "SynthScope may not write into the folder of this study."
    return ""


def change_study(settings: Settings, path: str, former: StudySpec, spec: StudySpec) -> None:
    """Write a study file anew; the files of cohorts that leave it, and all that was computed, stay.

    Parameters
    ----------
    settings : Settings
        Names the workspace.
    path : str
        study.toml.
    former, spec : StudySpec
        What the change was made from, and what it leads to.

    Raises
    ------
    InputError
        A study that cannot be changed, has a job under way, or is not ``former`` any more; a new study that cannot be
        read, or whose new or changed cohorts have no image. Then the file is left as it was.
    """
    file = Path(path)
    with alone(Store(settings.workspace).folder() / "studies.lock"):
        if reason := why_fixed(settings, path):
            raise InputError(reason, path, "Save the change as a study of its own.")
        if job := next((job for job in jobs.list_jobs(settings, study=path) if job.active), None):
            what = f"a job of this study is under way ({job.title})."
            raise InputError(what, path, "Wait for its end, or cancel it on the page Jobs; then save again.")
        if not same_spec(read_spec(file), former):
            what = "the study file was changed meanwhile, in another tab or by an editor."
            raise InputError(what, path, "Load it again, and make your change to what it is now.")
        _check(spec, file, former)
        write_spec(spec, file)


def copy_study(settings: Settings, path: str, spec: StudySpec, folder: str) -> str:
    """Write the changed ``spec`` of the study at ``path`` as a study of its own, which names the same files.

    Raises
    ------
    InputError
        See `create_study`.
    """
    return create_study(settings, folder, absolute(spec, Path(path).parent))


def _check(spec: StudySpec, path: Path, former: StudySpec) -> None:
    """Refuse a study that cannot be evaluated, or whose new and changed cohorts have no image."""
    study = find_study(spec, path)
    check_choices(study)
    known = [former.real, former.training, *former.synthetic.values()]
    wanted = {"real": spec.real, "training": spec.training, **spec.synthetic}
    for cohort in study.cohorts:
        if not cohort.cases and wanted[cohort.name] not in known:
            what = f"the cohort {cohort.name!r} has no image. {' '.join(cohort.notes)}"
            raise InputError(what, str(path), "Correct its images, or leave the cohort out.")


def _remembered(settings: Settings) -> list[str]:
    try:
        paths = json.loads((settings.workspace / "studies.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(path) for path in paths] if isinstance(paths, list) else []


def _title(path: str) -> str:
    file = Path(path).stat()
    return _title_of(path, file.st_mtime_ns, file.st_size, data_roots())


@lru_cache(maxsize=256)
def _title_of(path: str, time: int, size: int, roots: tuple[Path, ...]) -> str:
    """Read a study's name; a page asks for all of them several times a run."""
    del time, size, roots
    try:
        return read_spec(path).name
    except InputError:
        return f"{Path(path).parent.name} (broken study file)"
