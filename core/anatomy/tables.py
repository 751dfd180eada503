"""The label table, the paper's tables, and SynthSeg's volume CSV in and out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import InputError
from core.tables import check_numbers, read_cells, rename_aliases, write_rows
from core.volume import Volume, load_labels

DATA = Path(__file__).resolve().parents[2] / "data"
TIV = "total intracranial"
CSF = "csf"  # not segmented by the first SynthSeg
FIRST_PARCEL = 1000  # ids from here on are Desikan-Killiany parcels, absent without --parc
# Spellings of other versions and of FreeSurfer's colour table, after case, "-" and "_" are ignored.
ALIASES = {
    "total intracranial volume": TIV,
    "intracranial volume": TIV,
    "tiv": TIV,
    "icv": TIV,
    "brainstem": "brain-stem",
    **{f"{side} inf lat vent": f"{side} inferior lateral ventricle" for side in ("left", "right")},
    **{f"{side} thalamus proper": f"{side} thalamus" for side in ("left", "right")},
    **{f"{side} ventraldc": f"{side} ventral DC" for side in ("left", "right")},
    **{f"{side} accumbens": f"{side} accumbens area" for side in ("left", "right")},
}


def structures() -> pd.DataFrame:
    """Return the label table, in SynthSeg's file order (ascending id).

    Returns
    -------
    DataFrame
        ``id`` (FreeSurfer), ``name`` (SynthSeg's CSV column), ``side`` (left, right or ""), ``qc_group``
        ("" for csf, which SynthSeg's QC treats as background), ``region`` (name in the paper's Table 3, "" when
        not in it), ``kind`` (subcortical or cortical), ``r``, ``g``, ``b`` (FreeSurferColorLUT), ``words``
        (as it is said on screen, without its side).
    """
    return _structures().copy()


def regions() -> pd.DataFrame:
    """Return the 49 regions of the paper's Table 3 in its order: columns ``group`` and ``region``."""
    return paper_table(3)[["group", "region"]]


def in_words(region: str) -> str:
    """Return how a region of Table 3 is said on screen: FreeSurfer writes its names in one word."""
    return _words().get(region, region)


def paper_table(number: int) -> pd.DataFrame:
    """Return Table 1, 2 or 3 of Wu et al. (MICCAI 2024) as printed.

    Raises
    ------
    InputError
        When there is no such table.
    """
    if number not in (1, 2, 3):
        raise InputError(f"the paper has no table {number}.", "paper_table", "Choose 1, 2 or 3.")
    return pd.read_csv(DATA / "paper" / f"table{number}.csv")


def volume_columns(parcels: bool) -> list[str]:
    """Return the volume columns of SynthSeg's CSV after ``subject``, in file order, with or without ``--parc``."""
    table = _structures()
    return [TIV, *table.loc[(table["id"] < FIRST_PARCEL) | parcels, "name"]]


def read_volumes(path: Path | str) -> pd.DataFrame:
    """Read SynthSeg's volume CSV.

    Parameters
    ----------
    path : path
        Comma-separated; spaces around cells and an empty first header cell are accepted, and so are the names of
        other versions (`ALIASES`).

    Returns
    -------
    DataFrame
        Index ``subject`` (without image suffix), columns ``volume_columns(parcels)`` in mm³.
        ``attrs["notes"]`` says when the cortical parcels or csf are absent; csf is NaN then.

    Raises
    ------
    InputError
        With all problems found: missing file, empty table, missing or unknown columns, duplicate subjects,
        cells that are not volumes.
    """
    path = Path(path)
    return check_volumes(read_cells(path), str(path))


def write_volumes(volumes: pd.DataFrame, path: Path | str) -> None:
    """Write a volume table as SynthSeg does: its header, values rounded to 0.001 mm³, CRLF line ends."""
    table = check_volumes(volumes, "volumes to write").dropna(axis=1, how="all")
    write_rows(table, path, lambda volume: round(volume, 3))


def check_volumes(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return a copy of a volume table with index ``subject`` and SynthSeg's columns as floats.

    Parameters
    ----------
    table : DataFrame
        Subjects in the index or in a column ``subject``.
    where : str
        File or cohort named in the error.

    Raises
    ------
    InputError
        See `read_volumes`.
    """
    if "subject" in table.columns:
        table = table.set_index("subject")
    table = rename_aliases(table, volume_columns(True), ALIASES)
    parcels = any(str(column).startswith("ctx-") for column in table.columns)
    columns = volume_columns(parcels)
    csf = CSF in table.columns and bool((table[CSF].notna() | table.drop(columns=CSF).isna().all(axis=1)).any())
    if not csf:
        table = table.drop(columns=CSF, errors="ignore")
    numbers = check_numbers(
        table,
        where,
        wanted=[name for name in columns if csf or name != CSF],
        highest=np.inf,
        meaning="a volume in mm³ (a number ≥ 0)",
        advice="Give SynthSeg's CSV as it was written (mri_synthseg --vol); the columns are listed in docs/columns.md.",
    ).reindex(columns=columns)
    absent = ("no cortical parcels (segmented without --parc)",) if not parcels else ()
    numbers.attrs["notes"] = absent + (() if csf else ("no csf (the first SynthSeg does not segment it)",))
    return numbers


def regional_volumes(volumes: pd.DataFrame) -> pd.DataFrame:
    """Average left and right into the 49 regions of the paper's Table 3.

    Parameters
    ----------
    volumes : DataFrame
        SynthSeg's volume table, see `read_volumes`.

    Returns
    -------
    DataFrame
        Subjects x (``total intracranial``, 49 regions) in mm³; cortical regions are NaN when the table has no
        parcels, csf when it has none, and ``attrs["notes"]`` says so.
    """
    table = check_volumes(volumes, "volume table")
    values = table.to_numpy()
    columns = {TIV: table[TIV].to_numpy()}
    for region, places in _columns_of_regions().items():
        columns[region] = (
            values[:, places].mean(axis=1) if max(places) < values.shape[1] else np.full(len(values), np.nan)
        )
    result = pd.DataFrame(columns, index=table.index)
    result.attrs["notes"] = table.attrs["notes"]
    return result


@lru_cache(maxsize=1)
def _structures() -> pd.DataFrame:
    return pd.read_csv(DATA / "label_table.csv", keep_default_na=False)


@lru_cache(maxsize=1)
def _words() -> dict[str, str]:
    named = _structures().query("region != ''")
    return dict(zip(named["region"], named["words"], strict=True))


@lru_cache(maxsize=1)
def atlas_labels() -> Volume:
    """Return the FreeSurfer labels of the embedded template on the full grid; shared, so do not write into it."""
    return load_labels(DATA / "atlas_labels.nii.gz")


@lru_cache(maxsize=1)
def _columns_of_regions() -> dict[str, list[int]]:
    """Return the places of each region's structures among ``volume_columns(True)``; parcels come last there."""
    place = {name: i for i, name in enumerate(volume_columns(True))}
    names = _structures().query("region != ''").groupby("region", sort=False)["name"].apply(list)
    return {region: [place[name] for name in names[region]] for region in regions()["region"]}
