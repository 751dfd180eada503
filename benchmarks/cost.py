"""What a volume costs when there are many: one study at growing sizes, each evaluated twice in a process of its own.

Used by `python -m benchmarks.scale cost`. Volumes are a few simulated brains with noise drawn anew, all different.
Processor time is that of the process and its workers, memory the peak of a process since the phase began.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from benchmarks.measure import processor_time
from core import anatomy, quality, simulate
from core.cluster import open_pool
from core.pools import Context, Outcome, Pool
from core.settings import Settings
from core.study import CohortSpec, StudySettings, StudySpec, write_spec
from core.volume import HALF, byte_nifti
from core.workflows import evaluate
from core.workflows.viewing import STEP

COHORTS = ("real", "Alpha")
PEOPLE = 4  # simulated brains of a cohort
NOISE = 8  # grey levels of 255
WARM = 16  # volumes evaluated before anything is measured: workers start, networks are read, code is compiled
BETWEEN = "between the tasks"  # gathering, tables, provenance, and the comparison of regions


@dataclass
class Phase:
    """What a kind of task took: seconds by the clock and of processors, and peaks of memory in MiB."""

    wall: float = 0.0
    processor: float = 0.0
    parent: float = 0.0
    worker: float = 0.0


@dataclass
class Size:
    """What one size took."""

    cases: int
    phases: dict[str, Phase]
    again: Phase
    store_mib: float
    files: int
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def total(self) -> Phase:
        """Sum of the phases, and the highest of their peaks."""
        found = self.phases.values()
        times = (sum(getattr(phase, name) for phase in found) for name in ("wall", "processor"))
        return Phase(*times, *(max(getattr(phase, name) for phase in found) for name in ("parent", "worker")))


class Meter(Context):
    """A context that books what every kind of task takes, and what passes between them."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        super().__init__(settings, pool)
        self.phases: dict[str, Phase] = {}
        self.start = begin()

    def map(
        self,
        title: str,
        function: Any,
        items: Sequence[tuple[Any, ...]],
        sizes: Sequence[int] | None = None,
        *,
        network: bool = False,
    ) -> list[Outcome]:
        """Run the tasks as `Context.map` does."""
        self.book(BETWEEN)
        try:
            return super().map(title, function, items, sizes, network=network)
        finally:
            for cohort in COHORTS:
                title = title.removesuffix(f" {cohort}").removesuffix(" of")
            self.book(title)

    def book(self, name: str) -> None:
        """Add what passed since the last booking to a phase."""
        passed, phase = since(self.start), self.phases.setdefault(name, Phase())
        phase.wall, phase.processor = phase.wall + passed.wall, phase.processor + passed.processor
        phase.parent, phase.worker = max(phase.parent, passed.parent), max(phase.worker, passed.worker)
        self.start = begin()


def begin() -> tuple[float, float]:
    """Return clock and processor time now, and let the peaks of memory begin anew."""
    for process in tree():
        with suppress(OSError):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")
    return time.perf_counter(), processor_time(tree())


def since(start: tuple[float, float]) -> Phase:
    """Return what passed since `begin`."""
    wall, processor = time.perf_counter() - start[0], processor_time(tree()) - start[1]
    parent, *workers = (peak_mib(process.pid) for process in tree())
    return Phase(wall, processor, parent, max(workers, default=0.0))


def tree() -> list[psutil.Process]:
    """Return this process and its children."""
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def peak_mib(pid: int) -> float:
    """Return the most memory a process held since its peak was forgotten."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
    return 0.0


@lru_cache(maxsize=2)
def people_of(cohort: str) -> list[simulate.Simulated]:
    """Return the simulated people of a cohort."""
    return [simulate.simulate_case(HALF, COHORTS.index(cohort) + 1, index) for index in range(PEOPLE)]


def write_volume(folder: Path, cohort: str, seed: int, index: int) -> dict[str, float]:
    """Write one volume; return those of its regions, which vary as much from person to person as real ones do."""
    person, rng = people_of(cohort)[index % PEOPLE], np.random.default_rng([seed, COHORTS.index(cohort), index])
    levels = np.rint((person.volume.data + 1) / STEP)
    inside = levels > 0
    levels[inside] = np.clip(levels[inside] + rng.integers(-NOISE, NOISE + 1, inside.sum()), 1, 255)
    content = byte_nifti(levels.astype(np.uint8), person.volume.affine, slope=STEP, shift=-1.0)
    (folder / cohort / f"{cohort}-{index:06d}.nii.gz").write_bytes(content)
    return {name: volume * rng.normal(1, 0.1) for name, volume in person.volumes.items()}


def write_cohort(folder: Path, cohort: str, cases: int, seed: int) -> None:
    """Write the volumes of a cohort, and tables as SynthSeg would have written them."""
    (folder / cohort).mkdir(parents=True)
    subjects = pd.Index([f"{cohort}-{index:06d}" for index in range(cases)], name="subject")
    volumes = pd.DataFrame([write_volume(folder, cohort, seed, index) for index in range(cases)], index=subjects)
    scores = np.random.default_rng([seed, 9]).uniform(0.7, 0.95, (cases, len(quality.QC_SCORES)))
    anatomy.write_volumes(volumes, folder / f"{cohort}_volumes.csv")
    quality.write_qc(pd.DataFrame(scores, index=subjects, columns=list(quality.QC_SCORES)), folder / f"{cohort}_qc.csv")


def write_study(folder: Path, cases: int, settings: StudySettings, *, segmented: bool, seed: int) -> str:
    """Write a study of two cohorts of ``cases`` volumes together; return its path."""
    with ProcessPoolExecutor(len(COHORTS), mp_context=get_context("spawn")) as pool:
        list(pool.map(write_cohort, *zip(*((folder, name, cases // 2, seed) for name in COHORTS), strict=True)))
    tables = {name: {"volumes": f"{name}_volumes.csv", "qc": f"{name}_qc.csv"} if segmented else {} for name in COHORTS}
    real, synthetic = (CohortSpec(images=f"{name}/*.nii.gz", **tables[name]) for name in COHORTS)
    spec = StudySpec(name="cost", grid="half", real=real, synthetic={COHORTS[1]: synthetic}, settings=settings)
    write_spec(spec, folder / "study.toml")
    return str(folder / "study.toml")


def measure_size(place: Path, cases: int, settings: StudySettings, *, segmented: bool, workers: int) -> Size:
    """Evaluate a study of so many cases, and then again from the store."""
    of_process = Settings(workspace=place / "workspace", workers=workers)
    warm = write_study(place / "warm", WARM, settings, segmented=segmented, seed=1)
    study = write_study(place / "study", cases, settings, segmented=segmented, seed=0)
    with open_pool(of_process) as pool:
        evaluate(Context(of_process, pool), warm)
        before = store_size(of_process.workspace)
        meter = Meter(of_process, pool)
        summary = evaluate(meter, study)
        meter.book(BETWEEN)
        after = store_size(of_process.workspace)
        start = begin()
        evaluate(Context(of_process, pool), study)
        again = since(start)
    size, files = (last - first for last, first in zip(after, before, strict=True))
    return Size(cases, meter.phases, again, size, int(files), summary)


def store_size(folder: Path) -> tuple[float, float]:
    """Return the MiB on the disk and the number of files of a folder."""
    found = [
        os.lstat(os.path.join(root, name)).st_blocks / 2048 for root, _, names in os.walk(folder) for name in names
    ]
    return sum(found), len(found)


def measure_cost(
    place: Path, sizes: Sequence[int], settings: StudySettings, *, segmented: bool, workers: int, out: Path | None
) -> None:
    """Measure studies of so many cases one after the other, and print what a volume takes in each."""
    found: list[Size] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:  # a fresh one for each
        for n in sizes:
            size = pool.submit(measure_size, place / str(n), n, settings, segmented=segmented, workers=workers).result()
            print_size(size)
            found.append(size)
            if out:
                out.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    for first, second in itertools.pairwise(found):
        seconds = (second.total.processor - first.total.processor) / (second.cases - first.cases)
        print(f"{first.cases} to {second.cases}: each volume more takes {1000 * seconds:.0f} ms of processor time")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def print_size(size: Size) -> None:
    """Print what one size took."""
    total = size.total
    print(f"{size.cases} volumes: {size.summary}")
    for name, phase in [*size.phases.items(), ("all", total), ("again, from the store", size.again)]:
        print(
            f"  {name}: {1000 * phase.processor / size.cases:.1f} ms of processor time a volume, {phase.wall:.1f} s "
            f"waited, peak {phase.parent:.0f} MiB here, {phase.worker:.0f} MiB in a worker"
        )
    print(
        f"  store: {size.store_mib / size.cases:.3f} MiB and {size.files / size.cases:.1f} files a volume", flush=True
    )
