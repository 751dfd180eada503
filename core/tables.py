"""CSV tables: text made harmless for spreadsheets, and SynthSeg's tables, one row a subject, one number a column."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.errors import InputError
from core.volume import case_name

FORMULA = "=+-@\t\r\n＝＋－＠"  # what makes a spreadsheet run a cell, when it stands first
_NUMBERS = re.compile(r"[+-]\d[\d.,%[\]() eE+–−★☆-]*")  # these call nothing


def csv_text(table: pd.DataFrame, *, tabs: bool = False, **options: Any) -> str:
    """Return a table as CSV, or separated by tabs, in which no text is a formula; `pandas` knows the options."""
    safe = table.set_axis([neutral(name) for name in table.columns], axis=1)
    for place, kind in enumerate(safe.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            # As objects, which only a series keeps: names may hold what is no Unicode.
            cells = pd.Series([neutral(cell) for cell in safe.iloc[:, place]], index=safe.index, dtype=object)
            safe.isetitem(place, cells)  # type: ignore[arg-type]
    return str(safe.to_csv(index=False, sep="\t" if tabs else ",", lineterminator="\n", **options))


def neutral(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run, and before one that `restored` would take away.

    Numbers stay as they are, also those written as text. Every line ends with a line feed: a carriage return alone
    would end the row for some readers.
    """
    return _neutral_text(cell) if isinstance(cell, str) else cell


@lru_cache(maxsize=4096)  # long tables repeat the names of cohorts, cases and regions
def _neutral_text(cell: str) -> str:
    if not cell or _NUMBERS.fullmatch(cell):
        return cell
    cell = "\n".join(cell.replace("\r\n", "\n").split("\r"))
    return f"'{cell}" if cell[0] in FORMULA or _is_marked(cell) else cell


def restored(cell: Any) -> Any:
    """Take the apostrophe of `neutral` away again."""
    return cell[1:] if isinstance(cell, str) and _is_marked(cell) else cell


def _is_marked(cell: str) -> bool:
    return cell[:1] == "'" and cell[1:2] != "" and cell[1] in f"{FORMULA}'"


def read_cells(path: Path | str) -> pd.DataFrame:
    """Read a CSV as text.

    Returns
    -------
    DataFrame
        Index ``subject``; spaces around cells and an empty first header cell are accepted, and the apostrophes of
        `neutral` are taken away.

    Raises
    ------
    InputError
        Missing file, no text, no rows, a first column that is not the subject, ragged rows.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file.", str(path), "Check the path.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not a CSV text file ({error}).", str(path), "Export the table again.") from error
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        raise InputError("the table has no rows.", str(path), "Run the segmentation again, or remove the file.")
    header, body = rows[0], rows[1:]
    if header[0].lower() not in ("", "subject") or len(header) < 2:
        what = f"the first header cell is {header[0][:40]!r}, expected 'subject'."
        raise InputError(what, str(path), "Give SynthSeg's CSV, comma-separated.")
    if ragged := [row[0] for row in body if len(row) != len(header) or not row[0]]:
        what = f"rows without a subject or with other than {len(header)} cells: {some(ragged)}."
        raise InputError(what, str(path), "The file is truncated or edited: export it again.")
    index = pd.Index([restored(row[0]) for row in body], name="subject")
    return pd.DataFrame([row[1:] for row in body], index=index, columns=header[1:])


def rename_aliases(table: pd.DataFrame, known: Sequence[str], aliases: Mapping[str, str]) -> pd.DataFrame:
    """Return a table whose columns carry their known names where only the spelling differs.

    Parameters
    ----------
    table : DataFrame
        Columns under any name; those already known, and those not recognised, stay.
    known : sequence of str
        Names wanted; case, "-", "_" and repeated spaces do not count.
    aliases : mapping of str to str
        Other spellings (lower case, single spaces) to known names.
    """
    spelt = {_plain(name): name for name in known} | dict(aliases)
    names = [name if name in known else spelt.get(_plain(str(name)), name) for name in table.columns]
    return table.set_axis(names, axis=1)


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").replace("_", " ").split())


def check_numbers(
    table: pd.DataFrame, where: str, *, wanted: Sequence[str], highest: float, meaning: str, advice: str
) -> pd.DataFrame:
    """Return the wanted columns as floats, one row a subject; gather all problems before raising.

    Parameters
    ----------
    table : DataFrame
        Subjects in the index or in a column ``subject``.
    where : str
        File or cohort named in the error.
    wanted : sequence of str
        Columns, in order.
    highest : float
        Numbers must lie in [0, highest].
    meaning, advice : str
        What a valid cell is, and what to do, for the error.

    Raises
    ------
    InputError
        No rows, missing, unknown or repeated columns, duplicate subjects, cells that are no such numbers.
    """
    if "subject" in table.columns:
        table = table.set_index("subject")
    if table.empty:
        raise InputError("the table has no rows.", where, "Run the segmentation again, or remove the file.")
    problems = []
    if missing := [name for name in wanted if name not in table.columns]:
        problems.append(f"missing columns: {', '.join(missing)}.")
    if unknown := [str(name) for name in table.columns if name not in wanted]:
        problems.append(f"unknown columns or regions: {', '.join(unknown)}.")
    if not table.columns.is_unique:
        problems.append(f"repeated columns: {some(table.columns[table.columns.duplicated()].tolist())}.")
    subjects = pd.Index([case_name(str(subject)) for subject in table.index], name="subject")
    if not subjects.is_unique:
        problems.append(f"duplicate subjects: {some(subjects[subjects.duplicated()].unique().tolist())}.")
    if problems:
        raise InputError(" ".join(problems), where, advice)
    numbers = table[list(wanted)].apply(pd.to_numeric, errors="coerce").astype(float)
    numbers.index = subjects
    values = numbers.to_numpy()
    bad = np.argwhere(~(np.isfinite(values) & (values >= 0) & (values <= highest)))
    if len(bad):
        cells = [f"{subjects[i]} / {wanted[j]} = {table[wanted[j]].iloc[i]!r}" for i, j in bad]
        raise InputError(f"not {meaning}: {some(cells)}.", where, advice)
    return numbers


def write_rows(table: pd.DataFrame, path: Path | str, render: Callable[[float], object]) -> None:
    """Write a table as SynthSeg does: its header, one row a subject, CRLF line ends."""
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["subject", *table.columns])
        writer.writerows(
            [neutral(name), *map(render, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
        )


def some(items: Sequence[object], most: int = 5) -> str:
    """Join the first items of a list for a message."""
    shown = ", ".join(str(item) or "(blank)" for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
