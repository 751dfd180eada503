"""What the viewer shows: volumes as small files, regions and their place in the real cohort, thumbnails, sheets."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from core import anatomy, image_checks, quality
from core.errors import SynthScopeError
from core.pools import Context
from core.settings import Settings
from core.store import Store, content_key
from core.study import Study, read_study
from core.volume import Volume, byte_nifti, load_on_grid, resample, template
from core.workflows.cohorts import Prepared, prepare, template_of
from core.workflows.results import Results, load_case, load_case_labels, qc_of, source_of
from core.workflows.tasks import Source

PLANES = ("sagittal", "coronal", "axial")  # by the axis they cut
THUMBNAIL_VERSION = 1
STEP = 2 / 255  # of an 8-bit intensity in [-1, 1]
SHEET_COLUMNS = 20
Pair = tuple[str, str]  # cohort and case


# -- one case ----------------------------------------------------------------------------------------------------------


def case_files(settings: Settings, study: Study, cohort: str, case: str) -> tuple[bytes, bytes | None]:
    """Return the viewer's files of a case, image and label map; the latter is None while it is not segmented.

    Raises
    ------
    InputError
        Unknown case, or a file that cannot be used.
    """
    labels = load_case_labels(settings, study, cohort, case)
    return image_file(load_case(settings, study, cohort, case)), labels_file(labels) if labels else None


def template_files(study: Study) -> tuple[bytes, bytes | None]:
    """Return the viewer's files of the template a study's brains were brought to.

    Raises
    ------
    InputError
        A template file that cannot be used.
    """
    name, grid = template_of(study), study.grid
    if name != "embedded":
        return image_file(load_on_grid(name, grid, rule="percentile")), None
    labels = resample(anatomy.atlas_labels(), grid.shape, grid.affine, order=0)
    return image_file(template(grid)), labels_file(labels)


def image_file(volume: Volume) -> bytes:
    """Return a volume in [-1, 1] as a .nii.gz file of 256 grey levels, for looking at it."""
    levels = np.rint((np.clip(volume.data, -1, 1) + 1) / STEP).astype(np.uint8)
    return byte_nifti(levels, volume.affine, slope=STEP, shift=-1.0)


def labels_file(labels: Volume) -> bytes:
    """Return a label map as a .nii.gz file whose bytes count the rows of `anatomy.structures` from 1; 0 is none."""
    ids = anatomy.structures()["id"].to_numpy()
    lookup = np.zeros(max(int(ids.max()), int(labels.data.max())) + 1, dtype=np.uint8)
    lookup[ids] = np.arange(1, len(ids) + 1)
    return byte_nifti(lookup[labels.data], labels.affine, labels=True)


def region_facts(results: Results, cohort: str, case: str = "") -> dict[str, dict[int, tuple[float, float | None]]]:
    """Return what is known of each region of the cases of a cohort, or of one case of it.

    Returns
    -------
    dict
        By case, then by row of `anatomy.structures`, counted from 1: volume as measured (mm³), and the percentile of
        its region, left and right averaged, among the real brains at equal head size (%), None while unknown.
    """
    volumes, table = results.volumes, results.percentiles
    if case:
        volumes, table = volumes[volumes["subject"] == case], table[table["subject"] == case]
    volumes, table = volumes[volumes["cohort"] == cohort].set_index("subject"), table[table["cohort"] == cohort]
    ranks = table.pivot_table("percentile", "subject", ["group", "region"]).reindex(volumes.index)
    facts: dict[str, dict[int, tuple[float, float | None]]] = {str(case): {} for case in volumes.index}
    for row, structure in enumerate(anatomy.structures().itertuples(), start=1):
        if structure.name not in volumes:
            continue
        region = (structure.kind, structure.region)
        known = ranks[region] if region in ranks else pd.Series(np.nan, index=volumes.index)
        for case, volume, rank in zip(volumes.index, volumes[structure.name], known, strict=True):
            if np.isfinite(volume):
                facts[str(case)][row] = (float(volume), float(rank) if np.isfinite(rank) else None)
    return facts


def nearest_by_tiv(results: Results, cohort: str, case: str, among: str) -> str | None:
    """Return the case of ``among`` whose total intracranial volume is nearest; None while one is not known."""
    sizes = results.volumes.set_index(["cohort", "subject"])[anatomy.TIV].dropna()
    if (cohort, case) not in sizes.index or among not in sizes.index.get_level_values(0):
        return None
    others = sizes.loc[among].drop(index=case if cohort == among else [], errors="ignore")
    return str((others - sizes.loc[(cohort, case)]).abs().idxmin()) if len(others) else None


# -- many cases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """The middle planes of cases in one picture.

    Parameters
    ----------
    image : bytes
        JPEG of `SHEET_COLUMNS` columns, grey.
    cell : tuple of int
        Width and height of one brain, pixels.
    places : dict
        Where each case of (cohort, case) lies, counted row by row.
    missing : dict
        Cases of (cohort, case) without a picture, and why.
    """

    image: bytes
    cell: tuple[int, int]
    places: dict[Pair, int]
    missing: dict[Pair, str]


def plane_image(volume: Volume, plane: str) -> np.ndarray:
    """Return the middle plane as grey values to look at, shape (rows, columns), uint8; the left is on the left.

    Parameters
    ----------
    volume : Volume
        In [-1, 1].
    plane : {"sagittal", "coronal", "axial"}
        Sagittal: anterior on the right.
    """
    axis = ("sagittal", "coronal", "axial").index(plane)
    middle = np.take(volume.data, volume.data.shape[axis] // 2, axis=axis)
    return np.asarray(np.clip((middle.T[::-1] + 1) * 127.5, 0, 255).astype(np.uint8))


def png_file(plane: NDArray[np.uint8]) -> bytes:
    """Return grey values, shape (rows, columns), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, format="PNG")
    return buffer.getvalue()


def thumbnail(settings: Settings, source: Source) -> dict[str, NDArray[np.uint8]]:
    """Return the middle planes of a case, by name; they are kept in the store."""

    def draw() -> dict[str, NDArray[np.uint8]]:
        volume = source.load()
        return {plane: plane_image(volume, plane) for plane in PLANES}

    key = content_key("thumbnail", THUMBNAIL_VERSION, [source.token], {})
    found: dict[str, NDArray[np.uint8]] = Store(settings.workspace).get_or_compute("npz", key, draw)
    return found


def draw_thumbnails(context: Context, study: str) -> dict[str, int]:
    """Draw the thumbnails of a study that are not there yet: a job.

    Returns
    -------
    dict
        ``drawn`` and ``failed``.
    """
    plan = read_study(study)
    return draw_all(context, [prepare(context, plan, cohort) for cohort in plan.cohorts if cohort.cases])


def draw_all(context: Context, cohorts: Sequence[Prepared]) -> dict[str, int]:
    """Draw the thumbnails of prepared cohorts; one that fails is missing on the sheet, where the reason is found."""
    failed = count = 0
    for prepared in cohorts:
        items = [(context.settings, source) for source in prepared.sources]
        outcomes = context.map(f"thumbnails of {prepared.cohort.name}", _draw, items)
        failed += sum(bool(outcome.error) for outcome in outcomes)
        count += len(outcomes)
    return {"drawn": count - failed, "failed": failed}


def _draw(settings: Settings, source: Source) -> None:
    thumbnail(settings, source)


def undrawn(settings: Settings, study: Study, pairs: Sequence[Pair]) -> int:
    """Count the cases, of (cohort, case), without a thumbnail."""
    store, count = Store(settings.workspace), 0
    for cohort, case in pairs:
        try:
            source = source_of(settings, study, cohort, case)
        except SynthScopeError:
            continue  # it never gets one, and the sheet says why
        count += not store.has("npz", content_key("thumbnail", THUMBNAIL_VERSION, [source.token], {}))
    return count


def contact_sheet(settings: Settings, study: Study, pairs: Sequence[Pair], plane: str) -> Sheet:
    """Return one plane of cases, of (cohort, case), in their order; thumbnails that are not there are drawn."""
    planes: dict[Pair, NDArray[np.uint8]] = {}
    missing = {}
    for cohort, case in pairs:
        try:
            planes[cohort, case] = thumbnail(settings, source_of(settings, study, cohort, case))[plane]
        except SynthScopeError as error:
            missing[cohort, case] = str(error)
    if not planes:
        return Sheet(b"", (1, 1), {}, missing)
    height, width = next(iter(planes.values())).shape
    picture = np.zeros((math.ceil(len(planes) / SHEET_COLUMNS) * height, SHEET_COLUMNS * width), dtype=np.uint8)
    for place, image in enumerate(planes.values()):
        row, column = divmod(place, SHEET_COLUMNS)
        picture[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88)
    return Sheet(buffer.getvalue(), (width, height), {pair: place for place, pair in enumerate(planes)}, missing)


def case_verdicts(results: Results) -> dict[tuple[str, str], str]:
    """Return what the gate says of each case in words: "passes", the scores it fails, or why its file was rejected.

    Returns
    -------
    dict
        By cohort and case; cases that are not judged yet are not in it.
    """
    words: dict[tuple[str, str], str] = {}
    for row in results.cases[results.cases["status"] == "rejected"].itertuples():
        reason = str(row.reason).removeprefix(f"{row.path}: ")  # the case is known
        words[str(row.cohort), str(row.case)] = f"not judged, file rejected: {reason}"
    gates = results.quality.dropna(subset=["threshold"])
    for cohort, threshold in zip(gates["cohort"].astype(str), gates["threshold"], strict=True):
        qc = qc_of(results, cohort)
        if len(qc):
            words |= {(cohort, str(case)): "passes" for case in qc.index}
            failing = quality.failing_cases(qc, threshold)
            for case, failed in zip(failing["subject"], failing["failed"], strict=True):
                count, every = failed.count(", ") + 1, len(quality.QC_SCORES)
                which = f": {quality.briefly(failed)}" if count < every else ""
                words[cohort, str(case)] = f"fails {count} of {every}{which}"
    return words


def case_scores(results: Results, cases: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return every score there is of single cases, for sorting them.

    Parameters
    ----------
    results : Results
        Of the study.
    cases : mapping of str to sequence of str
        Cases by cohort.

    Returns
    -------
    DataFrame
        One row for each case: ``cohort``, ``case``; ``lowest QC`` and the eight QC scores (0 to 1, higher is better),
        ``TIV`` (mm³), the checks of `core.image_checks`, ``copy ratio`` by space (below 1: nearer to a training case
        than real brains are), and for each region the percentile among the real brains. NaN while unknown.
    """
    rows = [(cohort, case) for cohort, names in cases.items() for case in names]
    table = pd.DataFrame(rows, columns=["cohort", "case"])
    qc = results.qc.rename(columns={"subject": "case"})
    parts = [qc.assign(**{"lowest QC": qc[list(quality.QC_SCORES)].min(axis=1)})]
    parts[0] = parts[0][["cohort", "case", "lowest QC", *quality.QC_SCORES]]
    sizes = results.volumes[["cohort", "subject", anatomy.TIV]]
    parts.append(sizes.rename(columns={"subject": "case", anatomy.TIV: "TIV"}))
    checks = results.image_checks[["cohort", "subject", *image_checks.CHECKS]]
    parts.append(checks.rename(columns={"subject": "case"}))
    if len(results.copies):
        copies = results.copies.assign(space="copy ratio, " + results.copies["space"])
        parts.append(copies.pivot_table("ratio", ["cohort", "case"], "space").reset_index())
    if len(results.percentiles):
        wide = results.percentiles.pivot_table("percentile", ["cohort", "subject"], "region", sort=False)
        wide = wide.add_prefix("percentile, ").reset_index().rename(columns={"subject": "case"})
        parts.append(wide)
    for part in parts:
        part = part.drop_duplicates(["cohort", "case"]).astype({"cohort": "object", "case": "object"})
        table = table.merge(part, on=["cohort", "case"], how="left")
    return table
