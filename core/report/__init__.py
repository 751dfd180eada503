"""One offline HTML file of a study, its tables as CSV and LaTeX, and a JSON bundle that says how to run it again."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from core import __version__, plots
from core.encoders import ENCODERS
from core.errors import InputError, SynthScopeError
from core.pools import Context
from core.segmentation import SEGMENTERS
from core.settings import Settings
from core.store import write_atomically, write_csv, write_json
from core.study import Study, read_study
from core.volume import Volume
from core.workflows import Results, load_case, load_case_labels, read_results
from core.workflows import comparisons as compare
from core.workflows.results import qc_caveats, qc_of, rank_scores
from core.workflows.verdicts import verdicts

TEMPLATE = Path(__file__).resolve().parent.parent / "assets" / "report" / "report.html"
A_COHORT = 2  # brains of each cohort in the montage
GREY_MATTER = (3, 42, 8, 47)  # FreeSurfer: cerebral and cerebellar cortex; parcels lie above 1000
TINT = np.array([230, 159, 0])
PAPER = (
    "Wu, Peng, Li, Zhang, Pohl: Evaluating the Quality of Brain MRI Generators. MICCAI 2024. "
    "doi:10.1007/978-3-031-72117-5_28"
)


@dataclass(frozen=True)
class Table:
    """A table of the report: cells as text."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def make_report(
    context: Context, study: str, out: str, tables: str = "", bundle: str = "", drop_individuals: bool = False
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

    Returns
    -------
    dict
        ``out``, ``bytes``, ``tables``.

    Raises
    ------
    InputError
        See `core.study.read_study`; a study without results.
    """
    plan, results = read_study(study), read_results(context.settings, study)
    if not results.provenance:
        raise InputError("the study has no results yet.", study, "Evaluate it first.")
    made = [table_one(plan, results), table_two(plan, results), table_three(plan, results)]
    context.progress(0.1, "montage")
    pictures = montage(context.settings, plan, results, drop_individuals)
    context.progress(0.8, "writing")
    html = render(plan, results, made, pictures, drop_individuals)
    _write_text(html, Path(out))
    for table in made if tables else ():
        write_csv(pd.DataFrame(table.rows, columns=list(table.columns)), Path(tables) / f"{table.name}.csv")
        _write_text(latex(table), Path(tables) / f"{table.name}.tex")
    if bundle:
        write_json(make_bundle(plan, results, drop_individuals), Path(bundle))
    return {"out": out, "bytes": len(html.encode()), "tables": len(made)}


def _write_text(text: str, path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


# -- tables in the layout of the paper ---------------------------------------------------------------------------------


def table_one(study: Study, results: Results) -> Table:
    """Arrange similarity as in Table 1 of the paper, corrected, with intervals and the floor in the last row."""
    names = [cohort.name for cohort in study.synthetic]
    cells = compare.table_one(rank_scores(results), names, study.settings.encoders, "corrected")
    labels = {cohort.name: cohort.label for cohort in study.synthetic} | {compare.REAL: f"{study.real.label}: floor"}
    groups = list(cells.groupby(["encoder", "column"], sort=False))
    columns = ["cohort", *(f"{_encoder(str(e))} {c}".strip() for (e, c), _ in groups)]
    rows = []
    for name in (*names, compare.REAL):
        values = [_score(part[part["cohort"] == name].iloc[0]) for _, part in groups]
        rows.append((labels[name], *values))
    note = "★ best; ☆ best, tied. [95 % interval]. Floor: real against real volumes at the same N."
    return Table("table_1", "Table 1: similarity", tuple(columns), tuple(rows), note)


def table_two(study: Study, results: Results) -> Table:
    """Arrange the quality gate as in Table 2 of the paper."""
    labels = {cohort.name: cohort.label for cohort in study.cohorts}
    rows = tuple(
        (
            labels.get(row["cohort"], row["cohort"]),
            f"{row['n']:.0f}",
            f"{row['failed_scores']:.0f}",
            f"{row['failed_volumes']:.0f}",
            f"{row['pass_rate']:.1%} [{row['ci_low']:.1%}, {row['ci_high']:.1%}]",
            "yes" if row["reliable"] else "no",
        )
        for _, row in results.quality.iterrows()
    )
    columns = ("cohort", "N", "failed scores", "failed volumes", "pass rate", "reliable")
    return Table(
        "table_2",
        "Table 2: segmentation quality",
        columns,
        rows,
        f"Not seen by the gate: {' '.join(qc_caveats(study))}",
    )


def table_three(study: Study, results: Results) -> Table:
    """Arrange Cohen's d by region as in Table 3 of the paper, with the engine's noise."""
    effects = results.effect_sizes
    names = [cohort for cohort in study.synthetic if (effects["cohort"] == cohort.name).any()]
    rows = []
    for region, part in effects.groupby("region", sort=False):
        by_cohort = part.set_index("cohort")
        cells = [_effect(pd.Series(by_cohort.loc[c.name])) if c.name in by_cohort.index else "" for c in names]
        noise = by_cohort["noise_floor"].max() if "noise_floor" in by_cohort else np.nan
        rows.append((str(region), f"{noise:.2f}" if np.isfinite(noise) else "", *cells))
    note = (
        "Cohen's d of TIV-adjusted volumes [95 % interval]; 0 is best, positive: the real region is larger. "
        "± noise: what the segmentation engine alone can do. Cohorts that fail the gate are not relied upon. "
        f"{'; '.join(c.label for c in names if c.label != c.name)}."
    )
    columns = ("region", "± noise", *(c.name for c in names))
    return Table("table_3", "Table 3: anatomy", columns, tuple(rows), note)


def _encoder(name: str) -> str:
    return ENCODERS[name].label if name in ENCODERS else name


def _score(row: pd.Series) -> str:
    low, high = row["ci_low"], row["ci_high"]
    interval = f" [{low:.3g}, {high:.3g}]" if pd.notna(low) and low < high else ""
    if pd.isna(row["value"]):
        return interval.strip() or "–"
    return f"{row['value']:.3g}{'' if not row['best'] else ' ☆' if row['tied'] else ' ★'}{interval}"


def _effect(row: pd.Series) -> str:
    if pd.isna(row["cohens_d"]):
        return "–"
    interval = f" [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]" if pd.notna(row.get("ci_low")) else ""
    return f"{row['cohens_d']:+.2f}{interval}"


_TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{"★": r"$\star$", "☆": r"$\circ$", "±": r"$\pm$", "–": "--", "−": "$-$", "α": r"$\alpha$"},
}


def escape_latex(text: str) -> str:
    """Escape what LaTeX would take as a command."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs."""
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(escape_latex, table.columns)) + r" \\"
    body = "\n".join([r"\toprule", head, r"\midrule", *lines, r"\bottomrule"])
    columns = "l" + "r" * (len(table.columns) - 1)
    caption = escape_latex(f"{table.title.partition(': ')[2].capitalize()}. {table.note}")
    return (
        f"\\begin{{table}}\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n"
        "\\end{tabular}\n\\end{table}\n"
    )


# -- figures -----------------------------------------------------------------------------------------------------------


def montage(settings: Settings, study: Study, results: Results, drop_individuals: bool) -> list[dict[str, str]]:
    """Return pictures of the first brains of each cohort: ``source`` (data URI), ``caption``."""
    shown = []
    for cohort in (study.real, *study.synthetic):
        if cohort.role == "real" and drop_individuals:
            continue
        scores = qc_of(results, cohort.name)
        for case in cohort.cases[:A_COHORT]:
            try:
                volume = load_case(settings, study, cohort.name, case.case_id)
                labels = load_case_labels(settings, study, cohort.name, case.case_id)
            except SynthScopeError:
                continue  # listed among the rejected cases of the study
            lowest = f", lowest QC score {scores.loc[case.case_id].min():.2f}" if case.case_id in scores.index else ""
            caption = f"{cohort.label}: {case.case_id}{lowest}"
            shown.append({"source": _picture(volume, labels), "caption": caption})
    return shown


def _picture(volume: Volume, labels: Volume | None) -> str:
    planes = []
    height = max(volume.data.shape[1:])
    for axis in range(3):
        middle = volume.data.shape[axis] // 2
        grey = np.clip((np.take(volume.data, middle, axis=axis).T[::-1] + 1) * 127.5, 0, 255)
        plane = np.repeat(grey[..., None], 3, axis=2)
        if labels is not None:
            found = np.take(labels.data, middle, axis=axis).T[::-1]
            matter = np.isin(found, GREY_MATTER) | (found >= 1000)
            plane[matter] = 0.65 * plane[matter] + 0.35 * TINT
        planes.append(np.pad(plane, (((height - len(plane)) // 2, -(-(height - len(plane)) // 2)), (0, 0), (0, 0))))
    image = Image.fromarray(np.concatenate(planes, axis=1).astype(np.uint8))
    image = image.resize((660, round(660 * image.height / image.width)), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def figures(study: Study, results: Results, drop_individuals: bool) -> list[dict[str, str]]:
    """Return the interactive figures: ``title``, ``json`` of plotly, ``note``."""
    cohorts = [c for c in study.cohorts if c.role != "training"]
    if drop_individuals:
        cohorts = [c for c in cohorts if c.role == "synthetic"]
    colours = plots.cohort_colours([c.name for c in study.cohorts])
    by_label = {c.label: colours[c.name] for c in study.cohorts}
    threshold = results.quality["threshold"].dropna().head(1).tolist()
    scores = {c.label: qc_of(results, c.name) for c in cohorts}
    strips = plots.qc_scatter(scores, threshold[0] if threshold else None, colours=by_label)
    heat = plots.effect_heatmap(results.effect_sizes)
    note = " Individual real scans are left out." if drop_individuals else ""
    return [
        {"title": "Figure 2: quality scores", "json": _json(strips), "note": "Each point is one volume." + note},
        {"title": "Figure 3: effect sizes", "json": _json(heat), "note": "Cohen's d of each region; 0 is best."},
    ]


def _json(figure: Any) -> str:
    return str(figure.update_layout(font={"color": "#1B1F24", "size": 14}).to_json())


# -- words -------------------------------------------------------------------------------------------------------------


def methods(study: Study, results: Results) -> str:
    """Return the methods paragraph, from what is recorded with the results."""
    settings, record = results.provenance.get("settings", {}), results.provenance
    used = "; ".join(f"{c['name']} ({c['role']}, {c['used']} volumes)" for c in record.get("cohorts", []))
    encoders = ", ".join(_encoder(name) for name in settings.get("encoders", study.settings.encoders))
    engine = SEGMENTERS.get(settings.get("segmenter", ""))
    shape, spacing = "×".join(map(str, study.grid.shape)), study.grid.spacing
    return (
        f"The cohorts {used} were compared on a grid of {shape} voxels of {spacing:g} mm by SynthScope "
        f"{record.get('code', __version__)}, after Wu et al. (2024). Features: {encoders}. "
        f"Segmentation: {engine.label if engine else settings.get('segmenter', 'imported')}; at most "
        f"{settings.get('qc_fail_rate', study.settings.qc_fail_rate):.0%} of the volumes may fail the quality gate. "
        f"Intervals: 95 %, {settings.get('n_boot', study.settings.n_boot)} bootstraps, seed "
        f"{settings.get('seed', study.settings.seed)}. Regional volumes were adjusted for total intracranial volume."
    )


def limits(study: Study, results: Results) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    lines = [f"{c.label}: made by this software, not by a scanner." for c in study.cohorts if c.origin]
    lines += [f"{g['cohort']}: {g['what']}: {g['reason']}" for g in results.provenance.get("gaps", [])[:20]]
    lines += sorted({str(w["reason"]) for w in results.provenance.get("warnings", [])})[:10]
    return [*lines, "Scores depend on N and encoder; compare them only within this report.", "Research use only."]


def make_bundle(study: Study, results: Results, drop_individuals: bool) -> dict[str, Any]:
    """Return study.toml as text, versions, settings, and the content hash of every input: what a rerun must match."""
    record = dict(results.provenance)
    if drop_individuals:
        hidden = {c.name for c in study.cohorts if c.role != "synthetic"}
        inputs = record.get("inputs", {})
        record["inputs"] = {key: sha for key, sha in inputs.items() if key.partition("/")[0] not in hidden}
        record["gaps"] = [gap for gap in record.get("gaps", []) if gap["cohort"] not in hidden]
    command = "python -m core evaluate study.toml --out results"
    return {"study.toml": study.path.read_text("utf-8"), "version": __version__, "run": command, "provenance": record}


def render(
    study: Study, results: Results, tables: list[Table], pictures: list[dict[str, str]], drop_individuals: bool
) -> str:
    """Return the HTML; every name is escaped."""
    page = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return str(
        page.render(
            title=f"{study.name}: are the synthetic brains plausible?",
            version=__version__,
            made=time.strftime("%Y-%m-%d"),
            grid=study.grid.name,
            dropped=drop_individuals,
            incomplete=not results.provenance.get("complete"),
            plotly_js=Markup(get_plotlyjs()),
            verdicts=[verdict.sentence for verdict in verdicts(study, results)],
            tables=tables,
            montage=pictures,
            figures=figures(study, results, drop_individuals),
            methods=methods(study, results),
            limits=limits(study, results),
            references=[PAPER, *dict.fromkeys(_references(study))],
        )
    )


def _references(study: Study) -> list[str]:
    return [ENCODERS[name].reference for name in study.settings.encoders if name in ENCODERS]
