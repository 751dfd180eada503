"""Segmenters: a volume on an atlas grid in; labels, regional volumes and eight QC scores out.

Adding an engine is one file here and one line in `SEGMENTERS`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.errors import InputError
from core.volume import Volume

DATA = Path(__file__).parents[2] / "data"
QC_GROUPS = (
    "general white matter",
    "general grey matter",
    "general csf",
    "cerebellum",
    "brainstem",
    "thalamus",
    "putamen+pallidum",
    "hippocampus+amygdala",
)


@dataclass(frozen=True)
class Segmentation:
    """What an engine says about one volume.

    Parameters
    ----------
    labels : Volume
        FreeSurfer ids, int32, on the grid of the input; cortex as Desikan-Killiany parcels.
    volumes : dict
        mm³ under SynthSeg's column names and in their order, parcels included.
    qc : dict
        Predicted Dice, 0 to 1, of the eight groups of SynthSeg; higher is better.
    """

    labels: Volume
    volumes: dict[str, float]
    qc: dict[str, float]


Segmenter = Callable[[Volume], Segmentation]


@dataclass(frozen=True)
class Engine:
    """A registered segmenter: its name on screen, what it is in one sentence, its source, what it needs."""

    label: str
    card: str
    reference: str
    needs: str  # program that must be installed; "" for none
    version: str  # raised when its numbers change
    load: Callable[[], Segmenter]


def _load_atlas() -> Segmenter:
    from core.segmentation.atlas import segment

    return segment


SEGMENTERS: dict[str, Engine] = {
    "atlas": Engine(
        label="Atlas registration",
        card="Labels of the ICBM152 template carried to the case by deformable registration; sulci follow roughly.",
        reference="greedy: Yushkevich et al., Alzheimer's & Dementia 12 (2016), doi:10.1016/j.jalz.2016.06.205",
        needs="",
        version="2",
        load=_load_atlas,
    ),
}


def build(name: str) -> Segmenter:
    """Return the segmenter called ``name``.

    Raises
    ------
    InputError
        When there is no such segmenter.
    """
    return _engine(name).load()


def fingerprint(name: str) -> str:
    """Return what identifies the numbers of a segmenter: its name and version."""
    return f"{name}-{_engine(name).version}"


def label_names() -> dict[int, str]:
    """Return SynthSeg's structure name of each FreeSurfer id, in the order of its volume table."""
    return {int(row["id"]): row["name"] for row in _label_table()}


def qc_groups() -> dict[int, str]:
    """Return the QC group of each FreeSurfer id that has one."""
    return {int(row["id"]): row["qc_group"] for row in _label_table() if row["qc_group"]}


def volume_row(sizes: Mapping[int, float]) -> dict[str, float]:
    """Turn mm³ per label (cortex as parcels) into a row of SynthSeg's volume table."""
    row = {"total intracranial": float(sum(sizes.values()))}
    for label, name in label_names().items():
        if label in (3, 42):  # the cortex of a side is the sum of its parcels
            first = 1000 if label == 3 else 2000
            row[name] = float(sum(v for k, v in sizes.items() if first < k < first + 1000))
        else:
            row[name] = float(sizes.get(label, 0.0))
    return row


@lru_cache(maxsize=1)
def _label_table() -> tuple[dict[str, str], ...]:
    with (DATA / "label_table.csv").open(newline="") as table:
        return tuple(csv.DictReader(table))


def _engine(name: str) -> Engine:
    if name not in SEGMENTERS:
        raise InputError(f"unknown segmenter {name!r}.", "segmenter", f"Choose one of: {', '.join(SEGMENTERS)}.")
    return SEGMENTERS[name]
