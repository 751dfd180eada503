"""Job records that are locked, and clocks that jump."""

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core import jobs
from core.cluster import open_pool
from core.pools import Context
from core.settings import Settings
from tests import job_functions
from tests.cluster import Cluster, wait_for


@pytest.fixture
def work(monkeypatch):
    """Queue a job without a runner process; the job is the function given."""

    def queue(settings: Settings, function) -> str:
        monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)
        monkeypatch.setattr(jobs, "resolve", lambda name: function)
        return jobs.submit(settings, "core.x:f", {}, "A")

    return queue


def test_records_locked_for_longer_than_the_patience_fail_no_job(settings: Settings, work, monkeypatch):
    monkeypatch.setattr(jobs, "BUSY_SECONDS", 0.2)
    started, locked = threading.Event(), threading.Event()

    def job(context):
        started.set()
        locked.wait(20)
        for step in range(5):
            context.progress(step / 5, "working")
            context.log("a line")
        return {"n": 5}

    job_id = work(settings, job)
    runner = threading.Thread(target=jobs.run_pending, args=(settings,), kwargs={"idle_seconds": 1.0})
    runner.start()
    started.wait(20)
    other = sqlite3.connect(settings.workspace / "jobs.sqlite", isolation_level=None, timeout=20)
    other.execute("BEGIN IMMEDIATE")
    locked.set()
    time.sleep(4)
    other.execute("ROLLBACK")
    other.close()
    runner.join(60)
    assert jobs.status(settings, job_id).state == "done"
    assert jobs.status(settings, job_id).result == {"n": 5}


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_set_back_or_forward_hides_no_cancel_and_ends_no_job(settings: Settings, work, monkeypatch, jump):
    true_time, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true_time() + shift[0])
    seen: list[int] = []

    def job(context):
        for step in range(200):
            context.progress(step / 200, "working")
            seen.append(step)
            if context.is_cancelled():
                raise jobs.Cancelled("x")
            time.sleep(0.05)

    job_id = work(settings, job)
    runner = threading.Thread(target=jobs.run_pending, args=(settings,), kwargs={"idle_seconds": 1.0})
    runner.start()
    wait_for(lambda: len(seen) > 5, 20)
    shift[0] = jump
    reached = len(seen)
    wait_for(lambda: len(seen) > reached + 20, 20)
    assert jobs.status(settings, job_id).state == "running"
    jobs.cancel(settings, job_id)
    runner.join(30)
    assert jobs.status(settings, job_id).state == "cancelled"
    assert len(seen) < 190


# A scheduler whose clock jumps an hour ahead once the file is there.
JUMPING = """
import os, sys, time
true_time = time.time
time.time = lambda: true_time() + 3600 * os.path.exists(os.environ["JUMP"])
from distributed.cli.dask_scheduler import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_scheduler_whose_clock_jumps_loses_no_case_and_computes_none_twice(settings: Settings, tmp_path: Path):
    patience = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "3s"}
    cluster = Cluster(tmp_path / "elsewhere", **patience, JUMP=str(tmp_path / "jump"))
    (cluster.folder / "jumping.py").write_text(JUMPING)
    done = tmp_path / "done"
    done.mkdir()

    def report(fraction: float | None, message: str) -> None:
        if len(list(done.glob("*.done"))) >= 3:
            (tmp_path / "jump").touch()

    try:
        cluster.start("jumping", "--host", "127.0.0.1", "--port", str(cluster.port), "--no-dashboard")
        wait_for(cluster.answers)
        for _ in range(2):
            cluster.worker()
        with open_pool(replace(settings, scheduler=cluster.address)) as pool:
            names = [f"c{i}" for i in range(24)]
            items = [(str(done), name, 0.8) for name in names]
            outcomes = Context(settings, pool, report).map("x", job_functions.record_run, items)
        assert [outcome.value for outcome in outcomes] == names
        runs = [line.split()[0] for line in (done / "runs.txt").read_text(encoding="utf-8").splitlines()]
        assert sorted(runs) == sorted(names)
        assert (tmp_path / "jump").exists()
    finally:
        cluster.close()
