"""Evaluation on a Dask scheduler whose workers are other processes, started in other folders."""

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from distributed import Client

from core import workflows
from core.cluster import KEEP_MEMORY, MARK, DaskPool, open_pool
from core.errors import JobFailed
from core.pools import Context, InProcessPool, Needs
from core.settings import Settings
from core.study import CohortSpec, StudySettings, StudySpec, write_spec
from tests import job_functions
from tests.cluster import ROOT, Cluster, children_of, end, run, stall, tables, wait_for


@pytest.fixture
def cluster(tmp_path: Path):
    cluster = Cluster(tmp_path / "elsewhere")
    yield cluster
    cluster.close()


def write_study(folder: Path, write_brains) -> Path:
    for name, seed in (("real", 1), ("gen", 2)):
        write_brains(folder / name, 4, seed=seed, prefix=name)
    images = {"real": CohortSpec(images="real"), "synthetic": {"Gen": CohortSpec(images="gen")}}
    spec = StudySpec(name="test", grid="half", settings=StudySettings(encoders=("deepbet",), n_boot=20), **images)
    write_spec(spec, folder / "study.toml")
    return folder / "study.toml"


@pytest.mark.slow
def test_a_scheduler_gives_the_tables_of_a_local_run_byte_for_byte(cluster: Cluster, write_brains, tmp_path: Path):
    write_study(tmp_path, write_brains)
    cluster.scheduler()
    cluster.worker()
    cluster.worker()
    run(tmp_path / "local", "evaluate", "study.toml", "--out", "local_out", code=3)
    run(tmp_path / "shared", "evaluate", "study.toml", "--out", "shared_out", "--scheduler", cluster.address, code=3)
    assert tables(tmp_path / "shared_out") == tables(tmp_path / "local_out")
    assert len(tables(tmp_path / "local_out")) > 10
    # A verb with a relative path, and with the address in the environment.
    shared = tmp_path / "shared"
    run(shared, "simulate", "--out", "sim", "--n", 1, "--seed", 1, "--grid", "half", SYNTHSCOPE_SCHEDULER=cluster.address, code=0)  # fmt: skip
    assert [path.name for path in (tmp_path / "sim").glob("*.nii.gz")] == ["sim-s0001-0000.nii.gz"]
    assert not list(cluster.folder.rglob("*.nii.gz"))  # nothing in the folder the workers started in


class Weighing(InProcessPool):
    """Notes the largest argument and result of a task, as bytes on the wire."""

    heaviest = 0

    def map(self, function, items, needs=Needs()):  # noqa: B008
        for index, outcome in super().map(function, items, needs):
            sizes = [len(pickle.dumps(thing)) for thing in (items[index], outcome)]
            self.heaviest = max(self.heaviest, *sizes)
            yield index, outcome


def test_nothing_big_goes_through_the_scheduler(settings: Settings, write_brains, tmp_path: Path):
    study = write_study(tmp_path, write_brains)
    pool = Weighing()
    workflows.evaluate(Context(settings, pool), str(study))
    smallest = min(path.stat().st_size for path in (tmp_path / "real").iterdir())
    assert 0 < pool.heaviest < 20_000 < smallest


def test_workers_that_come_later_are_used(cluster: Cluster, settings: Settings, tmp_path: Path):
    cluster.scheduler()
    cluster.worker()
    (tmp_path / "runs").mkdir()
    started = []

    def report(fraction: float | None, message: str) -> None:
        if fraction and not started:
            started.append(cluster.worker())

    with open_pool(replace(settings, scheduler=cluster.address)) as pool:
        items = [(str(tmp_path / "runs"), f"c{i}", 0.2) for i in range(60)]
        Context(settings, pool, report).map("x", job_functions.record_run, items)
    lines = (tmp_path / "runs" / "runs.txt").read_text(encoding="utf-8").splitlines()
    assert len({line.split()[0] for line in lines}) == 60
    assert len({line.split()[1] for line in lines}) == 2


def test_the_network_takes_graphics_cards_and_the_rest_stays_off(cluster: Cluster, settings: Settings):
    cluster.scheduler()
    cluster.worker("--resources", "GPU=1", CARD="yes")
    cluster.worker(CARD="no")
    on = replace(settings, scheduler=cluster.address, device="cuda")
    with open_pool(on) as pool:
        context = Context(on, pool)
        context.map("open", job_functions.square, [(None, 1)])
        wait_for(lambda: len(pool.pool.client.scheduler_info(n_workers=-1)["workers"]) == 2)
        pool.pool.looked = 0
        cards = {o.value for o in context.map("net", job_functions.variable, [("CARD", 0.05)] * 12, network=True)}
        others = {o.value for o in context.map("rest", job_functions.variable, [("CARD", 0.05)] * 12)}
        assert (cards, others) == ({"yes"}, {"no"})
        off = Context(settings, pool)  # on the CPU the network needs no card
        assert {o.value for o in off.map("net", job_functions.variable, [("CARD", 0.05)] * 6, network=True)} == {"no"}
        # The worker without a card is restarted, under another address: what was meant for it is not lost.
        again = {o.value for o in context.map("rest", job_functions.die_every_second, [(settings_folder(on), i) for i in range(6)])}  # fmt: skip
        assert again == set(range(6))


def settings_folder(settings: Settings) -> str:
    settings.workspace.mkdir(parents=True, exist_ok=True)
    return str(settings.workspace)


def test_a_worker_without_the_storage_is_named_before_any_case_fails(cluster: Cluster, settings: Settings, tmp_path):
    on = replace(settings, scheduler=cluster.address)
    cluster.scheduler()
    cluster.worker()
    with open_pool(on) as pool:
        context = Context(on, pool)
        assert context.map("x", job_functions.square, [(None, 2)])[0].value == 4
        (on.workspace / MARK).write_text("another folder of the same name")
        context.share(tmp_path)  # new terms: the worker looks again
        with pytest.raises(JobFailed, match=r"Dask worker on .*: it does not see the workspace .*storage that all"):
            context.map("x", job_functions.square, [(None, 2)])
        (on.workspace / MARK).write_text(pool.pool.mark)
        context.share(tmp_path / "data")
        with pytest.raises(JobFailed, match=f"does not see {tmp_path / 'data'}"):
            context.map("x", job_functions.square, [(None, 2)])
        (tmp_path / "data").mkdir()
        assert context.map("x", job_functions.square, [(None, 2)])[0].value == 4  # mounted late


def test_workers_with_other_code_or_none_are_named(cluster: Cluster, settings: Settings, tmp_path: Path):
    shutil.copytree(ROOT / "core", tmp_path / "older" / "core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "older" / "core" / "__init__.py").write_text('__version__ = "0.0.1"')
    on = replace(settings, scheduler=cluster.address)
    cluster.scheduler()
    for path in (tmp_path / "older", ""):
        worker = cluster.worker(PYTHONPATH=str(path))
        with (
            open_pool(on) as pool,
            pytest.raises(JobFailed, match=r"Dask worker tcp.*another version of SynthScope, or"),
        ):
            context = Context(on, pool)
            context.map("x", job_functions.square, [(None, 2)])
        end(worker)


def test_a_scheduler_without_the_package_is_explained(cluster: Cluster, settings: Settings):
    on = replace(settings, scheduler=cluster.address)
    cluster.scheduler(PYTHONPATH="")
    cluster.worker()
    with open_pool(on) as pool, pytest.raises(JobFailed, match=r"cannot load the task .*PYTHONPATH"):
        Context(on, pool).map("x", job_functions.square, [(None, 2)])


def test_a_worker_that_is_silent_when_asked_for_its_code_holds_nobody_up(
    cluster: Cluster, settings: Settings, tmp_path: Path
):
    cluster.scheduler()
    silent, _ = cluster.worker(), cluster.worker()
    with Client(cluster.address) as client:
        wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2)
        (child,) = children_of(silent)
        stall(child)
        pool = DaskPool(lambda _: client, tmp_path)
        results = pool.map(job_functions.square, [(None, 2)])
        asking = Thread(target=next, args=[results], daemon=True)
        asking.start()
        wait_for(lambda: len(pool.checked) == 1)
        child.kill()  # its nanny starts another
        asking.join(60)
        assert not asking.is_alive() and not pool.fled


KEPT = """
import numpy as np, psutil
from core import cluster

def held():
    return psutil.Process().memory_info().rss / 2**20

before = held()
arrays = [np.ones(2**17) for _ in range(200)]  # 1 MiB each
last = np.ones(2**10)  # at the end of the heap, which cannot shrink
del arrays
print(held() - before)
cluster._give_back()
print(held() - before)
arrays = [np.ones(2**17) for _ in range(200)]
del arrays
cluster._give_back()  # too soon
print(held() - before)
"""


def test_workers_keep_freed_memory_and_give_it_back_now_and_then():
    environment = {**os.environ, **KEEP_MEMORY}
    result = subprocess.run([sys.executable, "-c", KEPT], env=environment, capture_output=True, text=True, check=True)
    kept, given_back, again = map(float, result.stdout.split())
    assert kept > 190 and again > 190 and given_back < 40
