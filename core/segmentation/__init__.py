"""Segmenters: a volume on an atlas grid in; labels, regional volumes and eight QC scores out.

Adding an engine is one file here and one line in `SEGMENTERS`. An engine works case by case (``load``), or, when it is
a program that is slow to start, on batches (``load_batch``).
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.errors import InputError, SynthScopeError
from core.volume import FULL, GRIDS, HALF, Grid, Volume

DATA = Path(__file__).parents[2] / "data"
ASSETS = Path(__file__).parents[2] / "assets"
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


@dataclass(frozen=True)
class Program:
    """A segmenter that is installed beside the product, and what it may use.

    Parameters
    ----------
    command : str
        Path, or a command line such as "python /opt/SynthSeg/scripts/commands/SynthSeg_predict.py"; "" when absent.
    threads : int
        Threads it may use.
    device : str
        "cpu", "cuda" or "cuda:1".
    """

    command: str
    threads: int = 1
    device: str = "cpu"


Segmenter = Callable[[Volume], Segmentation]
# Volumes and an empty folder to work in; one result or error a volume, in their order.
BatchSegmenter = Callable[[Sequence[Volume], Path], Iterator[Segmentation | SynthScopeError]]


@dataclass(frozen=True)
class Engine:
    """A registered segmenter: its name on screen, what it is in one sentence, its source, what it needs.

    Exactly one of ``load`` and ``load_batch`` is given.
    """

    label: str
    card: str
    reference: str
    needs: str  # program that must be installed; "" for none
    version: str  # raised when its numbers change
    qc_caveat: str  # what its quality control cannot see
    load: Callable[[], Segmenter] | None = None
    load_batch: Callable[[Program], BatchSegmenter] | None = None
    weights: tuple[str, ...] = ()  # files in assets/ that its numbers depend on


def _load_atlas() -> Segmenter:
    from core.segmentation.atlas import segment

    return segment


def _load_embedded() -> Segmenter:
    from core.segmentation.embedded import segment

    return segment


def _load_synthseg(program: Program) -> BatchSegmenter:
    from core.segmentation.synthseg import SynthSeg

    return SynthSeg(program, robust=True)


def _load_synthseg_standard(program: Program) -> BatchSegmenter:
    from core.segmentation.synthseg import SynthSeg

    return SynthSeg(program, robust=False)


BATCH = 10  # volumes a call of an outside program: starting it then costs about a tenth of the time
SYNTHSEG_QC_CAVEAT = (
    "SynthSeg's QC network sees only the label map, never the image: a poor image that still yields a plausible "
    "label map can pass."
)
SYNTHSEG_NEEDS = "mri_synthseg (FreeSurfer 7.4 or newer) or SynthSeg_predict.py"
SYNTHSEG_REFERENCE = "SynthSeg+: Billot et al., PNAS 120 (2023), doi:10.1073/pnas.2216399120"

SEGMENTERS: dict[str, Engine] = {
    "embedded": Engine(
        label="Embedded network",
        card="This product's own network, trained on images rendered from label maps of 11 people and the atlas; its "
        "quality control looks at the image too.",
        reference="SynthScope's model card of its segmenter (docs/segmenter.md of its source), after SynthSeg: "
        "Billot et al., Medical Image Analysis 86 (2023), doi:10.1016/j.media.2023.102789",
        needs="",
        version="1",
        qc_caveat="The embedded engine's quality control looks at the image and its segmentation, and was fitted on "
        "rendered volumes with known defects. What it misses most is a structure that is absent and yet labelled where "
        "it used to be; a defect of a kind it was not fitted on, or too small for 2 mm, can pass.",
        load=_load_embedded,
        weights=("embedded.safetensors", "embedded_qc.safetensors"),
    ),
    "atlas": Engine(
        label="Atlas registration",
        card="Labels of the ICBM152 template carried to the case by deformable registration; sulci follow roughly.",
        reference="greedy: Yushkevich et al., Alzheimer's & Dementia 12 (2016), doi:10.1016/j.jalz.2016.06.205",
        needs="",
        version="2",
        qc_caveat="The atlas engine's quality control measures how well image, warped template and labels agree on the "
        "half grid: a plausible brain whose folds merely differ from the template's fails, finer defects can pass.",
        load=_load_atlas,
    ),
    "synthseg": Engine(
        label="SynthSeg+ (robust)",
        card="The published engine with --robust --parc, as in the paper; its author means --robust for scans that "
        "are not skull-stripped.",
        reference=SYNTHSEG_REFERENCE,
        needs=SYNTHSEG_NEEDS,
        version="1+robust+parc",
        qc_caveat=SYNTHSEG_QC_CAVEAT,
        load_batch=_load_synthseg,
    ),
    "synthseg-standard": Engine(
        label="SynthSeg 2.0",
        card="The published engine with --parc and without --robust: the network that its author means for "
        "skull-stripped scans too.",
        reference=SYNTHSEG_REFERENCE,
        needs=SYNTHSEG_NEEDS,
        version="1+parc",
        qc_caveat=SYNTHSEG_QC_CAVEAT,
        load_batch=_load_synthseg_standard,
    ),
}


def check(volume: Volume) -> Grid:
    """Return the grid of a volume; raises InputError where it cannot be segmented."""
    where = volume.case_id or "volume"
    grid = next((g for g in GRIDS.values() if g.shape == volume.data.shape), None)
    if grid is None or not np.allclose(volume.affine, grid.affine, atol=0.1):
        raise InputError(
            f"shape {volume.data.shape} with this affine is not an atlas grid; expected {FULL.shape} at 1 mm or "
            f"{HALF.shape} at 2 mm.",
            where,
            "Run `python -m core preprocess` first.",
        )
    if not np.isfinite(volume.data).all():
        raise InputError("some voxels are NaN or Inf.", where, "Repair the generator or set them to background.")
    if np.mean(volume.data > volume.data.min()) < 0.05 or volume.data.std() < 0.01:
        raise InputError("the volume is empty or constant.", where, "Remove it or generate it again.")
    return grid


def build(name: str) -> Segmenter:
    """Return the segmenter called ``name``.

    Raises
    ------
    InputError
        When there is no such segmenter, or it works on batches.
    """
    load = _engine(name).load
    if load is None:
        raise InputError(f"{name} runs on batches only.", "segmenter", "Use `core.segmentation.build_batch`.")
    return load()


def in_batches(name: str) -> bool:
    """Tell whether a segmenter is a program that works on batches."""
    return _engine(name).load_batch is not None


def build_batch(name: str, program: Program) -> BatchSegmenter:
    """Return the segmenter called ``name``, for batches of volumes.

    Raises
    ------
    InputError
        When there is no such segmenter, or it works case by case.
    MissingAsset
        When the program is not installed.
    """
    load = _engine(name).load_batch
    if load is None:
        raise InputError(f"{name} works case by case.", "segmenter", "Use `core.segmentation.build`.")
    return load(program)


def program_version(name: str, program: Program) -> str:
    """Return the version of the program a segmenter runs, "" when it cannot be asked or none is needed."""
    if not in_batches(name) or not program.command:
        return ""
    from core.segmentation.synthseg import installed_version

    return installed_version(program)


@lru_cache(maxsize=8)
def fingerprint(name: str) -> str:
    """Return what identifies the numbers of a segmenter: its name, version, and the content of its weights."""
    engine, content = _engine(name), ""
    for weights in engine.weights:
        path = ASSETS / weights
        content += f"-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" if path.is_file() else "-absent"
    return f"{name}-{engine.version}{content}"


def clear_scratch(folder: Path) -> None:
    """Empty the working folder of a program, and end what a killed process left running there."""
    from core.segmentation.outside import end_leftovers

    end_leftovers(folder)
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True)


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
