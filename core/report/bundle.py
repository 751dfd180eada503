"""The bundle that says how to run an evaluation again, and the run that checks it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from core import __version__
from core.errors import InputError
from core.pools import Context
from core.report.words import without_people
from core.settings import Settings
from core.study import PROVENANCE, Study, absolute, read_spec, write_spec
from core.workflows import Results, evaluate, results_folder
from core.workflows.results import RESULT_FILES

FORMAT = 1
CHECKED = tuple(name for name in RESULT_FILES if name not in ("cases.csv", PROVENANCE))  # cases.csv holds paths
COMMAND = "python -m core rerun bundle.json --data FOLDER_OF_STUDY --out RESULTS"


def make_bundle(settings: Settings, study: Study, results: Results, drop_individuals: bool) -> dict[str, Any]:
    """Return study.toml as text, versions, settings, and the hash of every input and table: what a rerun must match."""
    record = without_people(study, results) if drop_individuals else results.provenance
    return {
        "format": FORMAT,
        "study": study.name,
        "study.toml": study.path.read_text("utf-8"),
        "version": __version__,
        "run": COMMAND,
        "tables": table_hashes(results_folder(settings, study.path)),
        "provenance": record,
    }


def table_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each table in a folder of results."""
    files = {name: folder / name for name in CHECKED}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.is_file()}


def rerun(context: Context, bundle: str, data: str, out: str) -> dict[str, Any]:
    """Evaluate a study again from its bundle, and say which inputs and tables are not the same.

    Parameters
    ----------
    context : Context
        Pool, settings, progress.
    bundle : str
        JSON file of `make_bundle`.
    data : str
        Folder that study.toml lay in; its relative paths start here.
    out : str
        Folder for study.toml, with paths made absolute, and the tables.

    Returns
    -------
    dict
        ``same`` tables, ``failed`` inputs and tables that differ or are missing, ``failures``, ``out``.

    Raises
    ------
    InputError
        A file that is no bundle, or of a newer format; see `core.workflows.evaluate`.
    """
    record = _read(bundle)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.toml"
    path.write_text(record["study.toml"], encoding="utf-8")
    write_spec(absolute(read_spec(path), Path(data).resolve()), path)
    if record["version"] != __version__:
        context.log(f"warning: the bundle was made by version {record['version']}, this is {__version__}")
    evaluate(context, str(path), out)
    found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["inputs"]
    wanted = dict(record["provenance"].get("inputs") or {})
    failures = [
        {"case": name, "error": "another file than in the bundle" if name in found else "not found"}
        for name, sha in wanted.items()
        if found.get(name) != sha
    ]
    tables = table_hashes(folder)
    differing = [name for name, sha in record["tables"].items() if tables.get(name) != sha]
    failures += [{"case": name, "error": "differs from the bundle's"} for name in differing]
    same = len(record["tables"]) - len(differing)
    return {"same": same, "failed": len(failures), "failures": failures, "out": out}


def _read(bundle: str) -> dict[str, Any]:
    try:
        record = json.loads(Path(bundle).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not a readable bundle ({error}).", bundle, "Give the JSON file of a report.") from error
    if not isinstance(record, dict) or not {"study.toml", "tables", "provenance", "version"} <= record.keys():
        raise InputError("not a bundle.", bundle, "Give the JSON file that `python -m core report --bundle` wrote.")
    if record.get("format") != FORMAT:
        what = f"expected format {FORMAT}, found {str(record.get('format'))[:40]!r}."
        raise InputError(what, bundle, "Make the bundle again, or use the version that made it.")
    kinds = {"study.toml": str, "tables": dict, "provenance": dict}
    if wrong := [name for name, kind in kinds.items() if not isinstance(record[name], kind)]:
        raise InputError(f"{', '.join(wrong)} is of the wrong kind.", bundle, "Make the bundle again.")
    return record
