"""A study for others: one offline HTML file, slides, tables as CSV and LaTeX, a bundle that runs it again."""

from __future__ import annotations

import io
import json
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from core import __version__
from core.errors import InputError
from core.pools import Context
from core.report.bundle import make_bundle, rerun
from core.report.figures import Brain, Chart, Portrait, charts, montage, plotly_json, portraits
from core.report.slides import write_slides
from core.report.tables import Table, all_tables, latex
from core.report.words import contents, limits, methods, references
from core.settings import Settings
from core.store import Store, write_atomically, write_json, write_text
from core.study import Study, read_study
from core.tables import csv_text
from core.workflows import Results, read_results, results_folder
from core.workflows.results import results_stamp
from core.workflows.verdicts import Verdict, best_first, verdicts

__all__ = ["Published", "contents", "make_report", "publish", "read_published", "rerun"]

TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "report" / "report.html"
NUMBERS = ("metrics.csv", "quality.csv", "effect_sizes.csv")  # beside the tables of text; nobody is in them
RECORD = "published.json"
MARKS = {"good": "✓", "bad": "✗", "open": "?"}  # of a reason


@dataclass(frozen=True)
class Report:
    """Everything a report shows, made once for all its forms."""

    study: Study
    results: Results
    verdicts: list[Verdict]
    tables: list[Table]
    portraits: list[Portrait]
    brains: list[Brain]
    charts: list[Chart]
    dropped: bool

    @property
    def title(self) -> str:
        """The question."""
        return f"{self.study.name}: are the synthetic brains plausible?"

    @property
    def origin(self) -> str:
        """What made it, when, and what is left out."""
        left_out = " · individual real scans left out" if self.dropped else ""
        return f"SynthScope {__version__} · {time.strftime('%Y-%m-%d')} · grid {self.study.grid.name}{left_out}"


def make_report(
    context: Context,
    study: str,
    out: str,
    tables: str = "",
    bundle: str = "",
    drop_individuals: bool = False,
    slides: str = "",
) -> dict[str, Any]:
    """Write the report of an evaluated study.

    Parameters
    ----------
    context : Context
        Settings and progress.
    study : str
        Path of study.toml.
    out : str
        HTML file; it needs nothing outside itself.
    tables : str
        Folder for the tables as CSV and LaTeX; "" writes none.
    bundle : str
        JSON file of study.toml, settings, versions and content hashes; "" writes none.
    drop_individuals : bool
        Leave out every image, point and name of a single real or training scan; aggregates stay.
    slides : str
        PPTX file; "" writes none.

    Returns
    -------
    dict
        ``out``, ``bytes``, ``tables``.

    Raises
    ------
    InputError
        See `core.study.read_study`; a study without results; an ``out`` that is named as something else than HTML.
    """
    if Path(out).suffix.lower() not in ("", ".html", ".htm"):
        remedy = "Name it FILE.html; --slides FILE.pptx writes slides beside it, and a browser prints it as PDF."
        raise InputError(f"the report is an HTML file, not {Path(out).suffix}.", out, remedy)
    made = _collect(context, study, drop_individuals)
    context.progress(0.6, "writing")
    html = render(made)
    write_text(html, Path(out))
    for name, text in table_files(context.settings, made).items() if tables else ():
        write_text(text, Path(tables) / name)
    if bundle:
        write_json(make_bundle(context.settings, made.study, made.results, drop_individuals), Path(bundle))
    if slides:
        context.progress(0.7, "slides")
        _write_slides(made, Path(slides))
    return {"out": out, "bytes": len(html.encode()), "tables": len(made.tables)}


def _collect(context: Context, study: str, drop_individuals: bool) -> Report:
    plan, results = read_study(study), read_results(context.settings, study)
    if not results.provenance:
        raise InputError("the study has no results yet.", study, "Evaluate it first.")
    context.progress(0.05, "tables and figures")
    made = all_tables(plan, results)
    figures = charts(plan, results, drop_individuals)
    context.progress(0.2, "brains")
    brains = montage(context.settings, plan, results, drop_individuals)
    judged = best_first(verdicts(plan, results))
    faces = portraits(context.settings, plan, results, judged, drop_individuals)
    return Report(plan, results, judged, made, faces, brains, figures, drop_individuals)


def table_files(settings: Settings, made: Report) -> dict[str, str]:
    """Return name and text of the tables: as shown in CSV and LaTeX, and the numbers behind them."""
    files = {}
    for table in made.tables:
        files[f"{table.name}.csv"] = csv_text(pd.DataFrame(table.rows, columns=list(table.columns)))
        files[f"{table.name}.tex"] = latex(table)
    folder = results_folder(settings, made.study.path)
    return files | {name: (folder / name).read_text("utf-8") for name in NUMBERS if (folder / name).is_file()}


def _write_slides(made: Report, path: Path) -> None:
    words = [
        ("Methods", [methods(made.study, made.results)]),
        ("Limits", limits(made.study, made.results, made.dropped)),
        ("What this file holds", contents(made.study, made.results, made.dropped)),
    ]
    sentences = [f"{verdict.label}: {verdict.answer}. {verdict.finding}" for verdict in made.verdicts]
    tables = [table for table in made.tables if table.name != "table_3"]  # 49 rows: Figure 4 shows them
    first = (made.title, made.origin, made.portraits)
    write_slides(path, first, sentences, made.brains, made.charts, tables, words)


def render(made: Report) -> str:
    """Return the HTML; every name is escaped."""
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return str(
        page.render(
            title=made.title,
            origin=made.origin,
            incomplete=not made.results.provenance.get("complete"),
            plotly_js=Markup(get_plotlyjs()),
            verdicts=made.verdicts,
            marks=MARKS,
            tables=made.tables,
            montage=made.brains,
            figures=[(title, plotly_json(plot), c.note) for c in made.charts for title, plot in c.pieces],
            methods=methods(made.study, made.results),
            limits=limits(made.study, made.results, made.dropped),
            contents=contents(made.study, made.results, made.dropped),
            references=references(made.study),
        )
    )


# -- in the workspace: what the page Report offers ---------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """The files of a report in the workspace, and the results they show."""

    html: Path
    slides: Path
    tables: Path
    bundle: Path
    made: float
    seconds: float
    complete: bool
    stamp: tuple[tuple[str, int], ...]


def published_folder(settings: Settings, study: str, drop_individuals: bool) -> Path:
    """Return the folder of a study's report."""
    name = results_folder(settings, Path(study)).name
    return Store(settings.workspace).folder("reports", name, "without_individuals" if drop_individuals else "full")


def publish(context: Context, study: str, drop_individuals: bool = False) -> dict[str, Any]:
    """Write all forms of a study's report into the workspace; see `make_report`.

    Returns
    -------
    dict
        ``bytes`` of the HTML, ``slides``, ``out``.
    """
    began, stamp = time.time(), results_stamp(context.settings, study)
    made = _collect(context, study, drop_individuals)
    folder = published_folder(context.settings, study, drop_individuals)
    (folder / RECORD).unlink(missing_ok=True)  # a half-written report is none
    context.progress(0.6, "writing")
    html = render(made)
    write_text(html, folder / "report.html")
    write_json(make_bundle(context.settings, made.study, made.results, drop_individuals), folder / "bundle.json")
    _write_zip(table_files(context.settings, made), folder / "tables.zip")
    context.progress(0.7, "slides")
    _write_slides(made, folder / "slides.pptx")
    record = {"made": time.time(), "seconds": time.time() - began, "stamp": stamp}
    write_json(record | {"complete": bool(made.results.provenance.get("complete"))}, folder / RECORD)
    return {"bytes": len(html.encode()), "out": str(folder)}


def read_published(settings: Settings, study: str, drop_individuals: bool) -> Published | None:
    """Return the report of a study in the workspace, None when it was never made."""
    folder = published_folder(settings, study, drop_individuals)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stamp = tuple((str(name), int(when)) for name, when in record.pop("stamp"))
    files = (folder / "report.html", folder / "slides.pptx", folder / "tables.zip", folder / "bundle.json")
    return Published(*files, **record, stamp=stamp)


def _write_zip(files: dict[str, str], path: Path) -> None:
    def write(temporary: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        temporary.write_bytes(buffer.getvalue())

    write_atomically(path, write)
