"""Command line: ``python -m core <verb>``, one verb per function of `core.workflows`.

Progress on stderr, results on disk. Exit 0 when complete, 2 for bad input, 3 when cases failed or numbers are missing.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from core.cluster import open_pool
from core.errors import InputError, SynthScopeError
from core.pools import Context
from core.settings import from_environment


class _Workflows:
    """The verbs, imported when one is called: help and usage errors need not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("core.workflows"), name)


workflows = _Workflows()
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Where the results go.")]
Scheduler = Annotated[str, typer.Option("--scheduler", help="Address of a Dask scheduler; local workers without it.")]
Named = Annotated[list[str], typer.Option("--synthetic", help="NAME=PATH; repeat for each generator.")]


class GridName(StrEnum):
    """Atlas grids."""

    full = "full"
    half = "half"


@app.command()
def simulate(
    out: Out,
    n: Annotated[int, typer.Option(help="Number of volumes.")],
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same volumes.")],
    grid: GridName = GridName.full,
    defect: Annotated[str, typer.Option(help="NAME[:STRENGTH], for example blur:2.")] = "",
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Make a simulated cohort, or a control cohort with one known defect."""
    _run(
        lambda context: workflows.simulate_cohort(context, str(out), n, seed, grid.value, defect),
        as_json,
        scheduler=scheduler,
    )


@app.command()
def split(
    participants: Annotated[Path, typer.Option(help="Pooled participants.tsv.")],
    n: Annotated[int, typer.Option(help="Subjects in the test set.")],
    seed: Annotated[int, typer.Option(help="Seed of the draw.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Split a pooled cohort: test.tsv uniform in age and half female, training.tsv without its subjects."""
    _run(lambda context: workflows.split_cohort(str(participants), n, seed, str(out)), as_json, parallel=False)


@app.command()
def preprocess(
    paths: Annotated[list[Path], typer.Option("--in", help="Files, folders or DICOM series folders; repeat.")],
    out: Out,
    template: Annotated[Path | None, typer.Option(help="Template file; the embedded atlas without it.")] = None,
    grid: GridName = GridName.full,
    more: Annotated[list[Path] | None, typer.Argument(help="More files or folders.")] = None,
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Bring raw T1w scans to the atlas."""
    scans = [str(path) for path in (*paths, *(more or []))]
    name = str(template) if template else "embedded"
    _run(
        lambda context: workflows.preprocess_scans(context, scans, str(out), name, grid.value),
        as_json,
        scheduler=scheduler,
    )


@app.command()
def segment(
    folder: Annotated[Path, typer.Option("--in", help="Folder of atlas-space volumes.")],
    out: Out,
    engine: Annotated[str, typer.Option(help="Segmentation engine.")] = "embedded",
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Segment a folder: *_dseg.nii.gz, volumes.csv, qc.csv."""
    _run(lambda context: workflows.segment_folder(context, str(folder), str(out), engine), as_json, scheduler=scheduler)


@app.command()
def features(
    folder: Annotated[Path, typer.Option("--in", help="Folder of atlas-space volumes.")],
    encoder: Annotated[str, typer.Option(help="Name of the encoder.")],
    out: Out,
    weights: Annotated[Path | None, typer.Option(help="Weight file.")] = None,
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Extract features of a folder into an npz: features (n, d), cases (n,)."""
    file = str(weights) if weights else ""
    _run(
        lambda context: workflows.features_folder(context, str(folder), encoder, str(out), file),
        as_json,
        scheduler=scheduler,
    )


@app.command()
def metrics(
    real: Annotated[Path, typer.Option(help="Folder of volumes, or features file.")],
    synthetic: Named,
    out: Out = Path("metrics.csv"),
    encoder: Annotated[list[str] | None, typer.Option(help="Encoder; repeat.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Metric; repeat. All without it.")] = None,
    training: Annotated[Path | None, typer.Option(help="What the generators saw, for the copy check.")] = None,
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Score synthetic cohorts against real ones: metrics.csv, and metrics.json with details, gaps and warnings."""
    named, seen = _named(synthetic), str(training) if training else ""
    names = (encoder or (), metric or ())
    _run(
        lambda context: workflows.evaluate_folders(context, str(real), named, str(out), *names, seen),
        as_json,
        scheduler=scheduler,
    )


@app.command()
def quality(
    real: Annotated[Path, typer.Option(help="SynthSeg's QC CSV of the real cohort.")],
    synthetic: Named,
    out: Out = Path("quality.csv"),
    fail_rate: Annotated[float, typer.Option(help="Share of real volumes that may fail.")] = 0.05,
    threshold: Annotated[float | None, typer.Option(help="Fixed threshold instead of the share.")] = None,
    as_json: Json = False,
) -> None:
    """Gate generators by their QC scores: quality.csv."""
    named = _named(synthetic)
    _run(
        lambda context: workflows.quality_of_tables(str(real), named, fail_rate, threshold, str(out)),
        as_json,
        parallel=False,
    )


@app.command()
def anatomy(
    real: Annotated[Path, typer.Option(help="SynthSeg's volume CSV of the real cohort.")],
    synthetic: Named,
    out: Out = Path("effect_sizes.csv"),
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare TIV-adjusted regional volumes by Cohen's d: effect_sizes.csv."""
    named = _named(synthetic)
    _run(lambda context: workflows.anatomy_of_tables(str(real), named, seed, str(out)), as_json, parallel=False)


@app.command()
def evaluate(
    study: Annotated[Path, typer.Argument(help="study.toml, or the folder that holds it.")],
    out: Out,
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Evaluate a study: metrics.csv, quality.csv, effect_sizes.csv, provenance.json."""
    _run(lambda context: workflows.evaluate(context, str(study), str(out)), as_json, scheduler=scheduler)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="Name of the generator; a wrong one lists them.")],
    data: Annotated[Path, typer.Option(help="Folder of atlas-space volumes, or study.toml with a training cohort.")],
    out: Out,
    grid: GridName = GridName.full,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    batch: Annotated[int, typer.Option(help="Volumes of a micro-batch; the model's own without it.")] = 0,
    accumulate: Annotated[int, typer.Option(help="Micro-batches an optimiser step adds up.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    devices: Annotated[int, typer.Option(help="Processes on each node, one a graphics card.")] = 1,
    nodes: Annotated[int, typer.Option(help="Nodes; start the command on each, as torchrun or SLURM do.")] = 1,
    preview_every: Annotated[int, typer.Option(help="Steps between sample previews; 0 makes none.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a generator: checkpoint.pt, model.safetensors, curve.csv, previews/."""
    run = (grid.value, steps, seed, batch, accumulate, resume, precision, devices, nodes, preview_every)
    _run(lambda context: workflows.train_generator(context, model, str(data), str(out), *run), as_json)


@app.command()
def generate(
    out: Out,
    n: Annotated[int, typer.Option(help="Number of volumes.")],
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same volumes.")],
    model: Annotated[str, typer.Argument(help="Name of the generator; a wrong one lists them.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="Weight file, or folder of them.")] = None,
    grid: GridName = GridName.full,
    steps: Annotated[int, typer.Option(help="Sampling steps of a diffusion model; its own without it.")] = 0,
    command: Annotated[str, typer.Option(help="Any program instead: {out}, {n} and {seed} are replaced.")] = "",
    scheduler: Scheduler = "",
    as_json: Json = False,
) -> None:
    """Fill a folder with samples of a generator, or let another program fill it."""
    if command and (model or checkpoint):
        typer.echo("error: a model and --command exclude each other. Leave one of them out.", err=True)
        raise typer.Exit(2)
    if command:
        _run(lambda context: workflows.generate_by_command(context, command, n, seed, str(out)), as_json)
        return
    file = str(checkpoint) if checkpoint else ""
    _run(
        lambda context: workflows.generate(context, model, file, n, seed, str(out), grid.value, steps),
        as_json,
        scheduler=scheduler,
    )


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="study.toml of an evaluated study, or the folder that holds it.")],
    out: Out,
    tables: Annotated[Path | None, typer.Option(help="Folder for the tables as CSV and LaTeX.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="JSON file that says how to run it again.")] = None,
    slides: Annotated[
        Path | None, typer.Option("--slides", "--pptx", help="PPTX file: a slide for each figure.")
    ] = None,
    drop_individuals: Annotated[
        bool, typer.Option("--drop-individuals", help="Leave single real scans out; aggregates stay.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write an evaluated study into one offline HTML file."""
    make = importlib.import_module("core.report").make_report
    files = (str(tables or ""), str(bundle or ""), drop_individuals, str(slides or ""))
    _run(lambda context: make(context, str(study), str(out), *files), as_json, parallel=False)


@app.command()
def rerun(
    bundle: Annotated[Path, typer.Argument(help="JSON file that `report --bundle` wrote.")],
    data: Annotated[Path, typer.Option(help="Folder that the study's study.toml lay in.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """Evaluate a study again from its bundle; exits with 3 when an input or a table is not the same."""
    again = importlib.import_module("core.report").rerun
    _run(lambda context: again(context, str(bundle), str(data), str(out)), as_json)


@app.command(hidden=True)
def demo(as_json: Json = False) -> None:
    """Make and evaluate the demo study in the workspace."""
    _run(lambda context: workflows.demo(context), as_json)


def _run(
    verb: Callable[[Context], dict[str, Any]], as_json: bool, *, parallel: bool = True, scheduler: str = ""
) -> None:
    try:
        settings = from_environment()
        if scheduler:
            settings = replace(settings, scheduler=scheduler)
        if not parallel:
            settings = replace(settings, scheduler="", workers=0)
        with open_pool(settings) as pool:
            progress = _Progress()
            result = verb(Context(settings, pool, progress.report))
            progress.last = 0.0
            progress.report(1.0, "done")
    except SynthScopeError as error:
        typer.echo(f"\nerror: {error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        typer.echo("\nstopped. What is finished is kept: the same command goes on from there.", err=True)
        raise typer.Exit(130) from error
    if as_json:
        typer.echo(json.dumps(result, sort_keys=True))
    failed = int(result.get("failed", 0)) + int(result.get("gaps", 0))
    typer.echo(f"\n{_summary(result)}", err=True)
    for gap in result.get("missing", []):
        typer.echo(f"  {gap['cohort']}: {gap['what']}: {gap['reason']}", err=True)
    for failure in result.get("failures", []):
        typer.echo(f"  {failure['case']}: {failure['error']}", err=True)
    raise typer.Exit(3 if failed else 0)


def _summary(result: dict[str, Any]) -> str:
    counts = ", ".join(f"{key} {value}" for key, value in result.items() if isinstance(value, int))
    return f"{counts} → {result['out']}" if "out" in result else counts


class _Progress:
    """One line on a terminal; whole lines, sparsely, in a log file."""

    def __init__(self) -> None:
        self.last = 0.0
        self.tty = sys.stderr.isatty()

    def report(self, fraction: float | None, message: str) -> None:
        now = time.monotonic()
        if fraction is None:
            typer.echo(("\r\033[K" if self.tty else "") + message, err=True)
        elif self.tty:
            typer.echo(f"\r\033[K{fraction:4.0%} {message}", err=True, nl=False)
        elif now - self.last > 5:
            self.last = now
            typer.echo(f"{fraction:4.0%} {message}", err=True)


def _named(items: list[str]) -> dict[str, str]:
    pairs = [item.partition("=") for item in items]
    wrong = [item for item, (name, sign, path) in zip(items, pairs, strict=True) if not (name and sign and path)]
    names = [name for name, _, _ in pairs]
    if wrong or len(set(names)) < len(names):
        what = f"expected NAME=PATH, found {wrong[0]!r}." if wrong else "two cohorts have the same name."
        typer.echo(
            f"error: {InputError(what, '--synthetic', 'For example --synthetic HA-GAN=samples/hagan.')}", err=True
        )
        raise typer.Exit(2)
    return {name: path for name, _, path in pairs}


if __name__ == "__main__":
    app(prog_name="python -m core")
