"""What one run of SynthSeg left on disk: a label map a scan, and two CSV tables for all of them.

A run may crash halfway, so every scan is judged by itself, and nothing is believed that is not whole: a scan counts
when its label map, its row of volumes and its row of QC scores are all there and keep SynthSeg's own sums.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import InputError
from core.segmentation import QC_GROUPS, Segmentation, label_names
from core.tables import some
from core.volume import Volume, load_labels, resample

TIV = "total intracranial"
FIRST_PARCEL = 1000
# The volumes are float32 sums written with all their digits: their rounding is far below this share of the total.
TOLERANCE = 1e-5
_NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")
_SCORE = re.compile(r"[01]\.\d{4}")  # SynthSeg writes four decimals, so a digit that went missing shows


@dataclass(frozen=True)
class Tables:
    """The rows of one table as text: subject to the rows that carry its name, and the columns."""

    columns: tuple[str, ...]
    rows: dict[str, list[list[str]]]
    name: str

    def row(self, subject: str) -> dict[str, str]:
        """Return the cells of one subject by column.

        Raises
        ------
        InputError
            No row, several, or one with missing or extra cells.
        """
        found = self.rows.get(subject, [])
        if len(found) != 1 or len(found[0]) != len(self.columns):
            what = "no row" if not found else "two rows" if len(found) > 1 else "a damaged row"
            raise InputError(f"{self.name} has {what} for this scan.")
        return dict(zip(self.columns, found[0], strict=True))


def volume_names() -> tuple[str, ...]:
    """Return the columns of ``--vol`` with ``--parc``, in file order."""
    return TIV, *label_names().values()


def read_table(path: Path, columns: Sequence[str]) -> Tables:
    """Read a table that may have been cut off while it was written.

    Parameters
    ----------
    path : Path
        SynthSeg's CSV; the header cell above the subjects may be empty.
    columns : sequence of str
        Columns it must have, in any order.

    Raises
    ------
    InputError
        No file, no text, or other columns.
    """
    if not path.is_file():
        raise InputError(f"it wrote no {path.name}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        whole = text[: text.rfind("\n") + 1]  # a last line without its end may lack digits
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(whole, newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name} is damaged ({error}).") from error
    header = rows[0] if rows else [""]
    found = header[1:]
    if header[0].lower() not in ("", "subject") or sorted(found) != sorted(columns):
        lacking = [name for name in columns if name not in found]
        extra = [name for name in found if name not in columns]
        parts = [f"it lacks {some(lacking)}" if lacking else "", f"unknown are {some(extra)}" if extra else ""]
        detail = "; ".join(part for part in parts if part) or "its header is damaged"
        raise InputError(f"{path.name} has other columns than SynthSeg 2.0 writes ({detail}).")
    by_subject: dict[str, list[list[str]]] = {}
    for row in rows[1:]:
        by_subject.setdefault(row[0], []).append(row[1:])
    return Tables(tuple(found), by_subject, path.name)


def read_scan(labels: Path, volumes: Tables, qc: Tables, subject: str, frame: Volume) -> Segmentation:
    """Read what SynthSeg says about one scan.

    Parameters
    ----------
    labels : Path
        Its label map, 1 mm isotropic in the space of the scan.
    volumes, qc : Tables
        The tables of the run.
    subject : str
        Its name in the tables.
    frame : Volume
        The scan on the study's grid; the label map is brought there.

    Raises
    ------
    InputError
        Something is missing, damaged or impossible.
    """
    if not labels.is_file():
        raise InputError("it wrote no label map for this scan.")
    row = _volumes(volumes.row(subject))
    scores = _scores(qc.row(subject))
    return Segmentation(_labels(labels, frame), row, scores)


def _volumes(cells: dict[str, str]) -> dict[str, float]:
    wrong = [f"{name} = {cell!r}" for name, cell in cells.items() if not _NUMBER.fullmatch(cell)]
    if wrong:
        raise InputError(f"volumes that are no numbers in mm³: {some(wrong, 3)}.")
    sizes = {name: float(cells[name]) for name in volume_names()}
    if not np.isfinite(list(sizes.values())).all() or not sizes[TIV] > 0:
        raise InputError("no brain was found in this scan (its total volume is not above 0).")
    names = label_names()
    structures = sum(sizes[name] for label, name in names.items() if label < FIRST_PARCEL)
    if abs(structures - sizes[TIV]) > TOLERANCE * sizes[TIV]:
        what = f"the structures add up to {structures:.3f} mm³, the row says {sizes[TIV]:.3f}: the row is damaged."
        raise InputError(what)
    parcels = sum(sizes[name] for label, name in names.items() if label > FIRST_PARCEL)
    # SynthSeg scales the parcels to one sum: that of the cortex, or, in version 2.0 as released, of the white matter.
    sums = [sizes[names[left]] + sizes[names[right]] for left, right in ((3, 42), (2, 41))]
    if min(abs(parcels - total) for total in sums) > TOLERANCE * max(sums):
        what = f"the cortical parcels add up to {parcels:.3f} mm³, the cortex has {sums[0]:.3f}: the row is damaged."
        raise InputError(what)
    return sizes


def _scores(cells: dict[str, str]) -> dict[str, float]:
    wrong = [f"{k} = {v!r}" for k, v in cells.items() if not (_SCORE.fullmatch(v) and float(v) <= 1)]
    if wrong:
        raise InputError(f"QC scores that are not in [0, 1] with four decimals: {some(wrong, 3)}.")
    return {name: float(cells[name]) for name in QC_GROUPS}


def _labels(path: Path, frame: Volume) -> Volume:
    found = load_labels(path)
    unknown = set(np.unique(found.data).tolist()) - {0, *label_names()}
    if unknown:
        raise InputError(f"the label map has ids that SynthSeg does not use: {some(sorted(unknown))}.")
    same = found.data.shape == frame.data.shape and np.allclose(found.affine, frame.affine, atol=1e-3)
    data = found.data if same else resample(found, frame.data.shape, frame.affine, order=0).data
    if not data.any():
        raise InputError("the label map is empty on the study's grid.")
    return Volume(np.asarray(data, np.int32), frame.affine, frame.case_id)
