"""Generators: training on a cohort, and samples that become a cohort."""

from __future__ import annotations

import shlex
import subprocess
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from core import __version__, generators
from core.errors import InputError, JobFailed
from core.pools import Cancelled, Context
from core.settings import Settings, refuse_outside, refuse_scan_outside
from core.store import Store, content_key, write_volume
from core.study import PROVENANCE, CohortSpec, check_name, read_spec, read_study, write_spec
from core.volume import SUFFIXES, Volume, grid_named, load
from core.workflows.cohorts import Prepared, prepare, prepare_folder
from core.workflows.evaluation import evaluate
from core.workflows.tasks import Source, use_threads
from core.workflows.verbs import claim_folder

if TYPE_CHECKING:
    from core.generators.base import Generator

ESTIMATE_VERSION = 2


@dataclass(frozen=True)
class SourceVolumes:
    """Volumes of a prepared cohort, by index."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        """Return the number of volumes."""
        return len(self.sources)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """Load one volume (x, y, z)."""
        return self.sources[index].load().data


def train_generator(
    context: Context,
    model: str,
    data: str,
    out: str,
    grid: str = "full",
    steps: int = 1000,
    seed: int = 0,
    batch: int = 0,
    accumulate: int = 1,
    resume: bool = False,
    precision: str = "32-true",
    devices: int = 1,
    nodes: int = 1,
    preview_every: int = 0,
) -> dict[str, Any]:
    """Train one of the generators on a folder of atlas-space volumes; it stops when the job is cancelled, and resumes.

    Parameters
    ----------
    model, grid : str
        See `core.generators.build`.
    data, out : str
        Folder of volumes, or study.toml, whose training cohort is taken; folder of checkpoint, export, curve and
        previews.
    steps, seed, batch, accumulate : int
        See `core.generators.training.Plan`; a batch of 0 takes the model's own.
    resume : bool
        Go on from the checkpoint in ``out``.
    precision, devices, nodes, preview_every
        See `core.generators.training.Machine`.

    Raises
    ------
    InputError
        Unknown model or grid, a folder that cannot be trained on; see `core.generators.training.train`.
    JobFailed
        A checkpoint cannot be written.
    Cancelled
        After everything was saved.
    """
    import torch

    from core.generators import training

    refuse_outside(out)
    torch.set_num_threads(max(context.settings.threads, context.settings.workers or 1))
    torch.manual_seed(seed)
    generator = generators.build(model, grid)
    machine = training.Machine(
        accelerator="cuda" if context.settings.device.startswith("cuda") else "cpu",
        devices=devices,
        nodes=nodes,
        precision=precision,
        loaders=1 if grid == "full" else 0,
        preview_every=preview_every,
    )
    plan = training.Plan(steps, seed, batch or generator.batch, accumulate)
    training.check_plan(generator, plan, machine)
    prepared = _training_cohort(context, data, grid)
    plan = replace(plan, data=prepared.token)
    if resume and not (Path(out) / training.CHECKPOINT).exists():
        context.log(f"no run to go on with in {out}: it starts at step 0")
    for row in prepared.rows:
        if row["status"] == "ok" and row["notes"]:
            context.log(f"{row['case']}: {row['notes']}")
    done = training.train(
        generator,
        SourceVolumes(prepared.sources),
        Path(out),
        plan,
        machine,
        resume=resume,
        report=context.progress,
        stop=context.is_cancelled,
        facts={"trained_on": " ".join(f"{len(prepared.sources)} {prepared.cohort.origin} brains".split())},
    )
    if done.step < done.steps:
        raise Cancelled(f"saved at step {done.step} of {done.steps}")
    failed = [row for row in prepared.rows if row["status"] != "ok"]
    failures = [{"case": row["case"], "error": row["reason"]} for row in failed]
    return {"steps": done.step, "seconds": round(done.seconds), "failed": len(failed), "failures": failures, "out": out}


def generate(
    context: Context, model: str, checkpoint: str, n: int, seed: int, out: str, grid: str = "full", steps: int = 0
) -> dict[str, Any]:
    """Fill a folder with samples of a generator; resumes where it stopped.

    Writes ``<model>-s<seed>-<index>.nii.gz`` and ``provenance.json`` with checkpoint hash, seed and steps.

    Raises
    ------
    InputError
        Unknown model, a checkpoint that does not fit, n or steps below 1, or a folder that holds another cohort.
    """
    if n < 1:
        raise InputError(f"expected at least one volume, found {n}.", "--n", "Give a positive number.")
    if steps < 0:
        raise InputError(f"expected 1 step or more, found {steps}.", "--steps", "Leave it out for the model's own.")
    generators.card_named(model)
    if not checkpoint and grid == "half":
        checkpoint = str(demo_checkpoint(model) or "")
    if not checkpoint:
        raise InputError("no checkpoint is named.", "--checkpoint", f"Train one: python -m core train {model} ...")
    refuse_outside(out)
    refuse_scan_outside(checkpoint)
    generator, sha = _loaded(model, grid, checkpoint, "cpu")
    generator.check_request(n, steps or None)
    used = steps or generator.steps or 0
    settings = {"operation": "generate", "model": model, "grid": grid, "checkpoint": sha, "seed": seed, "steps": used}
    claim_folder(Path(out), {**settings, "label": _origin(checkpoint, used), "code": __version__}, settings)
    folder, weights = str(Path(out).absolute()), str(Path(checkpoint).absolute())  # workers start in other folders
    context.share(folder, weights)
    items = [(context.settings, model, grid, weights, sha, folder, seed, index, used) for index in range(n)]
    outcomes = context.map(f"sampling {generators.card_named(model).label}", sample_case, items, network=True)
    _release_empty(Path(out))
    failures = [
        {"case": case_name(model, seed, index), "error": outcome.error}
        for index, outcome in enumerate(outcomes)
        if outcome.error
    ]
    return {"cases": n, "failed": len(failures), "failures": failures, "out": out}


def generate_for_study(
    context: Context, study: str, name: str, model: str, checkpoint: str, n: int, seed: int, steps: int = 0
) -> dict[str, Any]:
    """Sample into the workspace, add the samples to a study as the cohort ``name``, and evaluate the study.

    Raises
    ------
    InputError
        As `generate`; a cohort of that name with other samples.
    """
    check_name(name)
    spec = read_spec(study)
    out = samples_folder(context.settings, study, name)
    images = str(Path(out) / "*.nii.gz")
    if name in spec.synthetic and spec.synthetic[name].images != images:
        raise InputError(f"the study has a cohort {name!r} already.", study, "Choose another name.")
    with context.stage(0.0, 0.5):
        made = generate(context, model, checkpoint, n, seed, out, spec.grid, steps)
    if made["failed"] == n:
        raise JobFailed(made["failures"][0]["error"], name)
    spec = read_spec(study)  # it may have been changed while the samples were made
    cohorts = {**spec.synthetic, name: CohortSpec(images=images)}
    write_spec(spec.model_copy(update={"synthetic": cohorts}), Path(study))
    with context.stage(0.5, 1.0):
        result = evaluate(context, study)
    return {**result, "failed": int(result.get("failed", 0)) + made["failed"]}


def generate_by_command(context: Context, command: str, n: int, seed: int, out: str) -> dict[str, Any]:
    """Let any program fill a folder: ``{out}``, ``{n}`` and ``{seed}`` in the command are replaced.

    What it wrote is checked; a volume that cannot be used counts as failed, with its reason.

    Raises
    ------
    InputError
        A command that names no ``{out}``, a program that is not there, or volumes none of which can be used.
    JobFailed
        The program failed, or left no volume.
    """
    if "{out}" not in command:
        raise InputError(
            "the command names no {out}.", "--command", "For example: python sample.py --n {n} --dir {out}"
        )
    folder = Path(out)
    settings = {"operation": "generate", "command": command, "seed": seed, "n": n}
    claim_folder(folder, {**settings, "label": f"by command: {command}", "code": __version__}, settings)
    words = [word.format(out=folder, n=n, seed=seed) for word in shlex.split(command)]
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        raise InputError(f"cannot start {words[0]} ({error.strerror}).", "--command", "Check the program.") from error
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        context.progress(min(1.0, len(_volumes_in(folder)) / n), last[:200])
        if context.is_cancelled():
            process.terminate()
            process.wait()
            raise Cancelled(command)
    code = process.wait()
    _release_empty(folder)
    if code:
        raise JobFailed(f"the program ended with {code}: {last}", command, "Run it by hand to see more.")
    made = len(_volumes_in(folder))
    if not made:
        raise JobFailed("the program left no volume.", str(folder), "It should write .nii.gz files into {out}.")
    prepared = prepare_folder(context, folder.name, out, "synthetic")
    failures = [{"case": row["case"], "error": row["reason"]} for row in prepared.rows if row["status"] != "ok"]
    if made < n:
        failures.append({"case": "missing", "error": f"the program wrote {made} of {n} volumes."})
    return {"cases": n, "failed": max(len(failures), n - made), "failures": failures, "out": out}


def estimate_generation(context: Context, model: str, grid: str = "full", steps: int = 0) -> dict[str, Any]:
    """Measure on this machine, once, what a volume costs with random weights: seconds, memory of a worker (bytes)."""
    store = Store(context.settings.workspace)
    where = {"model": model, "grid": grid, "steps": steps, "device": context.settings.device}
    where |= {"threads": context.settings.threads, "cores": psutil.cpu_count() or 1}
    key = content_key("estimate", ESTIMATE_VERSION, [__version__], where)
    outcome = context.map(
        "measuring one sample", _measure_sample, [(context.settings, store, key, model, grid, steps)], network=True
    )[0]
    if outcome.error:
        raise JobFailed(outcome.error, model)
    return dict(outcome.value)


def sample_case(
    settings: Settings, model: str, grid: str, checkpoint: str, sha: str, out: str, seed: int, index: int, steps: int
) -> str:
    """Make one sample in a folder, unless it is there already; return its case."""
    case = case_name(model, seed, index)
    target = Path(out) / f"{case}.nii.gz"
    if not target.is_file():
        generator, found = _loaded(model, grid, checkpoint, settings.device)
        if found != sha:
            raise InputError("the checkpoint changed meanwhile.", checkpoint, "Sample into another folder.")
        use_threads(settings.threads)
        data = generator.make(index, seed, steps or None)
        write_volume(Volume(data, grid_named(grid).affine, case), target)
    return case


def previews_of(out: str, most: int = 6) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return names and middle planes of the newest samples of a folder, or of the newest previews of a training run."""
    from core.generators.training import PREVIEWS, middle_planes

    if _is_outside(out):
        return []
    pictures = sorted((Path(out) / PREVIEWS).glob("*.png"))[-most:]
    if pictures:
        return [(f"step {int(path.stem)}", np.asarray(Image.open(path))) for path in pictures]
    newest = sorted(_volumes_in(Path(out)), key=lambda path: path.stat().st_mtime)[-most:]
    return [(path.name.partition(".")[0], middle_planes(load(path).data)) for path in newest]


def curve_of(out: str) -> list[dict[str, str]]:
    """Return the rows of a training run's curve; [] before the first."""
    from core.generators.training import read_curve

    return [] if _is_outside(out) else read_curve(Path(out))


def samples_folder(settings: Settings, study: str, name: str) -> str:
    """Return where `generate_for_study` keeps the samples of a cohort."""
    key = content_key("samples", 1, [Path(study).resolve().as_posix(), name], {})[:12]
    return str(Store(settings.workspace).folder("samples", key))


def case_name(model: str, seed: int, index: int) -> str:
    """Return the case of a sample."""
    return f"{model}-s{seed:04d}-{index:04d}"


def demo_checkpoint(model: str) -> Path | None:
    """Return the checkpoint of a generator that comes with the installation (half grid), if there is one."""
    path = Path(__file__).resolve().parents[2] / "assets" / f"{model}.safetensors"
    return path if path.is_file() else None


def _is_outside(path: str) -> bool:
    try:
        refuse_outside(path)
    except InputError:
        return True
    return False


def _training_cohort(context: Context, data: str, grid: str) -> Prepared:
    if Path(data).suffix != ".toml":
        return prepare_folder(context, Path(data).name, data, "training", grid_named(grid))
    study = read_study(data)
    if study.training is None:
        raise InputError("the study has no training cohort.", data, "Add [training] to it, or name a folder.")
    if study.grid.name != grid:
        raise InputError(f"the study is on the {study.grid.name} grid.", data, f"Use --grid {study.grid.name}.")
    return prepare(context, study, study.training)


def _origin(checkpoint: str, steps: int) -> str:
    """Say on screen where samples come from; simulated training data are always named."""
    from core.generators.base import read_facts

    facts = read_facts(Path(checkpoint)) if Path(checkpoint).is_file() else {}
    trained = facts.get("trained_on", "")
    words = ["sampled", f"{steps} steps" if steps else "", f"trained on {trained}" if trained else ""]
    return ", ".join(word for word in words if word)


def _release_empty(folder: Path) -> None:
    """Take the claim from a folder that holds no volume after all, so that a corrected call may fill it."""
    if not _volumes_in(folder):
        (folder / PROVENANCE).unlink(missing_ok=True)


def _volumes_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("[!.]*") if path.name.endswith(SUFFIXES)]  # half-written files are hidden


def _measure_sample(settings: Settings, store: Store, key: str, model: str, grid: str, steps: int) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        use_threads(settings.threads)
        generator = generators.build(model, grid).to(settings.device)
        generator.filled = set(generator.sampling)
        start = time.perf_counter()
        generator.make(0, 0, steps or None)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "memory": psutil.Process().memory_info().rss}

    found: dict[str, Any] = store.get_or_compute("json", key, measure)
    return found


@lru_cache(maxsize=2)
def _loaded(model: str, grid: str, checkpoint: str, device: str) -> tuple[Generator, str]:
    generator = generators.build(model, grid)
    report = generator.load_checkpoint(checkpoint)
    if report.missing:
        what = f"no weights for {', '.join(report.missing)}, which sampling needs."
        raise InputError(what, checkpoint, "Put the files of all parts into one folder and name the folder.")
    return generator.to(device), report.sha256
