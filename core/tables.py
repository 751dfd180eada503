"""SynthSeg's CSV tables: one row a subject, one number a column; read, checked and written the same way."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import InputError
from core.volume import case_name


def read_cells(path: Path | str) -> pd.DataFrame:
    """Read a CSV as text.

    Returns
    -------
    DataFrame
        Index ``subject``; spaces around cells and an empty first header cell are accepted.

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
    index = pd.Index([row[0] for row in body], name="subject")
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
            [name, *map(render, row)] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)
        )


def some(items: Sequence[object], most: int = 5) -> str:
    """Join the first items of a list for a message."""
    shown = ", ".join(str(item) or "(blank)" for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
