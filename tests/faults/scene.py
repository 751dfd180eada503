"""A small evaluation that faults are done to, and what must hold afterwards."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from core import jobs
from core.settings import Settings
from core.store import KINDS
from core.volume import HALF, Volume, save, template
from tests.cluster import Cluster, artefacts, children_of, command, end, run, stall, tables, wait_for
from tests.hosts import Hosts, Network

CASES = 4
JOB = "core.workflows:evaluate_folders"
METRICS = ("fid", "ms-ssim-real")
# Silent workers are given up after this; less, and a busy machine's workers are silent while they import.
PATIENCE = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}
SHORT_CUT, LONG_CUT = 20, 75  # seconds; connections that are silent for 30 are given up
GIVEN_UP = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s"}
READERS = {".npz": "npz", ".json": "json", ".parquet": "table", ".gz": "volume"}


def make_cohorts(folder: Path) -> None:
    """Write two cohorts of slightly different brains."""
    atlas = template(HALF)
    for name, seed in (("real", 1), ("gen", 2)):
        (folder / name).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for index in range(CASES):
            noise = 0.05 * rng.standard_normal(HALF.shape).astype(np.float32) * (atlas.data > -1)
            save(Volume(np.clip(atlas.data + noise, -1, 1), HALF.affine), folder / name / f"{name}-{index}.nii.gz")


class Scene:
    """One workspace and the evaluation that fills it.

    Parameters
    ----------
    data : Path
        Folder of the cohorts.
    folder : Path
        Where the workspace and the tables go.
    expected : dict
        Tables of an undisturbed run; {} in that run itself.
    """

    def __init__(self, data: Path, folder: Path, expected: dict[str, bytes], workspace: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.folder, self.expected = data, folder, expected
        self.workspace, self.out = workspace or folder / "workspace", folder / "out"
        self.kept: dict[str, tuple[int, int]] = {}
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def arguments(self) -> list[object]:
        """The command line of the evaluation."""
        metrics = [word for name in METRICS for word in ("--metric", name)]
        cohorts = ("--real", self.data / "real", "--synthetic", f"Gen={self.data / 'gen'}")
        return ["metrics", *cohorts, "--encoder", "deepbet", *metrics, "--out", self.out / "metrics.csv"]

    def start(self, *more: object, on: Sequence[str] = (), **changes: str) -> subprocess.Popen[str]:
        """Start the command line; ``on`` comes before it."""
        self.processes.append(command(self.workspace, *self.arguments, *more, on=on, **changes))
        return self.processes[-1]

    def close(self) -> None:
        """End what is left of a run that failed."""
        for process in self.processes:
            end(process)

    def finished(self) -> int:
        """Number of finished artefacts."""
        return len(artefacts(self.workspace))

    def reach(self, count: int, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait for so many artefacts, and remember them: none of them may be made again."""
        wait_for(lambda: self.finished() >= count or not alive(), 300)
        self.kept = artefacts(self.workspace)

    def check(self) -> None:
        """The tables are those of an undisturbed run, nothing finished was made again, every artefact is whole."""
        assert tables(self.out) == self.expected
        found = artefacts(self.workspace)
        again = [name for name, facts in self.kept.items() if found.get(name) != facts]
        assert not again, f"made again: {again}"
        for name in found:
            KINDS[READERS[Path(name).suffix]].read(self.workspace / name)
        assert not list(self.out.glob(".*")), "half-written files beside the tables"

    # -- as a background job

    def settings(self) -> Settings:
        return Settings(workspace=self.workspace, workers=2)

    def submit(self) -> str:
        """Queue the evaluation as a job and start a runner."""
        arguments = {"real": str(self.data / "real"), "synthetic": {"Gen": str(self.data / "gen")}}
        arguments |= {"out": str(self.out / "metrics.csv"), "encoder_names": ["deepbet"], "names": list(METRICS)}
        return jobs.submit(self.settings(), JOB, arguments, "drill")

    def runner(self) -> psutil.Process:
        """Return the runner of this workspace."""

        def mine(process: psutil.Process) -> bool:
            try:
                words, env = process.cmdline(), process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                return False
            return words[1:] == ["-m", "core.jobs"] and env.get("SYNTHSCOPE_WORKSPACE") == str(self.workspace)

        wait_for(lambda: any(mine(process) for process in psutil.process_iter()), 180)
        return next(process for process in psutil.process_iter() if mine(process))

    def wait_done(self, job: str) -> None:
        """Wait for the job, starting runners as a page view does."""

        def ended() -> bool:
            jobs.ensure_runner(self.settings())
            return not jobs.status(self.settings(), job).active

        wait_for(ended, 180)
        record = jobs.status(self.settings(), job)
        assert record.state == "done", record.error

    def stop_runner(self) -> None:
        runner = self.runner()
        runner.terminate()
        wait_for(lambda: not runner.is_running() or runner.status() == psutil.STATUS_ZOMBIE, 20)


@contextmanager
def cluster_of(folder: Path, **settings: str) -> Iterator[tuple[Cluster, list, list]]:
    """Offer a cluster, its schedulers and its two workers; end them all."""
    cluster = Cluster(folder, **settings)
    try:
        yield cluster, [cluster.scheduler()], [cluster.worker(), cluster.worker()]
    finally:
        cluster.close()


@contextmanager
def hosts_of(folder: Path, served: Sequence[Path] = (), **settings: str) -> Iterator[tuple[Hosts, Network]]:
    """Offer hosts: a desk for the command, a head with the scheduler, two with a worker each, one that serves folders.

    End them all.
    """
    network = Network(("desk", "head", "one", "two", "disk"))
    hosts = Hosts(folder, network, **settings)
    try:
        if served:
            network.serve("disk", served, folder / "keys")
        hosts.scheduler()
        for name in ("one", "two"):
            hosts.worker_on(name)
        yield hosts, network
    finally:
        hosts.close()
        network.close()


def worker_of(nanny: subprocess.Popen[bytes]) -> psutil.Process:
    """Return the process in which a nanny's tasks run."""
    wait_for(lambda: children_of(nanny), 30)
    return children_of(nanny)[0]


# -- faults: each takes a scene, a moment in finished artefacts and a folder for its processes -------------------------


def kill_worker(scene: Scene, moment: int, folder: Path) -> None:
    """Kill -9 of a worker; its nanny starts another."""
    with cluster_of(folder) as (cluster, _, workers):
        process = scene.start("--scheduler", cluster.address)
        scene.reach(moment, lambda: process.poll() is None)
        worker_of(workers[0]).kill()
        _finish(process)


def kill_host(scene: Scene, moment: int, folder: Path) -> None:
    """Kill -9 of all workers and their nannies, as hosts that lose power; another one joins."""
    with cluster_of(folder) as (cluster, _, workers):
        process = scene.start("--scheduler", cluster.address)
        scene.reach(moment, lambda: process.poll() is None)
        for worker in workers:
            end(worker)
        cluster.worker()
        _finish(process)


def kill_scheduler(scene: Scene, moment: int, folder: Path) -> None:
    """Kill -9 of the scheduler; it and a worker are started again, the command is not."""
    with cluster_of(folder) as (cluster, schedulers, _):
        process = scene.start("--scheduler", cluster.address)
        scene.reach(moment, lambda: process.poll() is None)
        end(schedulers[0])
        time.sleep(1)
        cluster.scheduler()
        cluster.worker()
        _finish(process)


def stall_worker(scene: Scene, moment: int, folder: Path) -> None:
    """A worker stays connected and silent beyond the timeout, as with a network that is gone, its locks held."""
    with cluster_of(folder, **PATIENCE) as (cluster, _, _):
        stalled = psutil.Process(cluster.worker("--no-nanny").pid)
        process = scene.start("--scheduler", cluster.address)
        scene.reach(moment, lambda: process.poll() is None)
        stall(stalled)
        try:
            _finish(process)
        finally:
            stalled.resume()


def cut_network(scene: Scene, moment: int, folder: Path) -> None:
    """The host of a worker loses its network for 20 s, and has it again: nothing but time is lost."""
    _cut(scene, moment, folder, "one", SHORT_CUT)


def lose_network(scene: Scene, moment: int, folder: Path) -> None:
    """It loses its network for longer than ``worker-ttl`` and than connections last; the run ends without it."""
    _cut(scene, moment, folder, "one", LONG_CUT, **GIVEN_UP)


def cut_command(scene: Scene, moment: int, folder: Path) -> None:
    """The host of the command loses its network for longer than connections last; the command goes on afterwards."""
    _cut(scene, moment, folder, "desk", LONG_CUT)


def cut_storage(scene: Scene, moment: int, folder: Path) -> None:
    """Data and workspace are on a host that loses its network for 20 s; command and workers see them through it."""
    _cut(scene, moment, folder, "disk", SHORT_CUT, (scene.data, scene.folder))


def _cut(
    scene: Scene, moment: int, folder: Path, name: str, seconds: float, served: Sequence[Path] = (), **settings: str
) -> None:
    with hosts_of(folder, served, **settings) as (hosts, network):
        process = scene.start("--scheduler", hosts.address, on=network.on("desk"))
        scene.reach(moment, lambda: process.poll() is None)
        network.cut(name)
        time.sleep(seconds)
        network.mend(name)
        _finish(process)


def kill_runner(scene: Scene, moment: int, folder: Path) -> None:
    """Kill -9 of the runner of background jobs; the next page view starts another."""
    _end_runner(scene, moment, psutil.Process.kill)


def terminate_runner(scene: Scene, moment: int, folder: Path) -> None:
    """SIGTERM of the runner, as at a shutdown; the next page view starts another."""
    _end_runner(scene, moment, psutil.Process.terminate)


def _end_runner(scene: Scene, moment: int, how: Callable[[psutil.Process], None]) -> None:
    job = scene.submit()
    runner = scene.runner()
    scene.reach(moment, runner.is_running)
    family = runner.children(recursive=True)
    how(runner)
    _, left = psutil.wait_procs(family, timeout=15)
    assert not left, "workers outlived their runner"
    scene.wait_done(job)
    scene.stop_runner()


def kill_command(scene: Scene, moment: int, folder: Path) -> None:
    """Kill -9 of the command line and of its workers; the same command is given again."""
    process = scene.start(SYNTHSCOPE_WORKERS="2")
    scene.reach(moment, lambda: process.poll() is None)
    end(process)
    _finish(scene.start(SYNTHSCOPE_WORKERS="2"))


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors, errors


SHORT = (kill_runner,)  # at every test run; the others cost a minute each, and have `make drill`
NETWORKED = (cut_network, lose_network, cut_command, cut_storage)  # these need root
FAULTS = (*SHORT, kill_scheduler, kill_worker, stall_worker, terminate_runner, kill_host, kill_command, *NETWORKED)


def undisturbed(data: Path, folder: Path) -> tuple[dict[str, bytes], int]:
    """Return the tables of a run without a fault, and the number of its artefacts."""
    make_cohorts(data)
    scene = Scene(data, folder, {})
    run(scene.workspace, *scene.arguments, code=0)
    return tables(scene.out), scene.finished()
