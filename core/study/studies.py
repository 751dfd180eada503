"""A study: its file and the cohorts it names, found on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError
from core.settings import refuse_outside
from core.study.cohorts import PROVENANCE, Cohort, find_cohort, fixed_part
from core.study.spec import StudySettings, StudySpec, read_spec
from core.volume import Grid, grid_named


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
        places |= {fixed_part(whole), whole / "participants.tsv", whole / "dataset_description.json"}
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
