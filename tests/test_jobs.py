import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core import jobs
from core.cluster import DaskPool, open_pool
from core.errors import InputError, JobFailed
from core.pools import Cancelled, Context, InProcessPool
from core.settings import Settings
from tests import job_functions


@pytest.fixture
def quiet(monkeypatch):
    """Queue jobs without starting a runner process."""
    monkeypatch.setattr(jobs, "ensure_runner", lambda settings: None)


def use(monkeypatch, function):
    monkeypatch.setattr(jobs, "resolve", lambda name: function)


def test_a_failed_item_is_an_outcome_and_the_others_go_on(context: Context, settings: Settings):
    outcomes = context.map("squares", job_functions.square, [(settings, 2), (settings, -1), (settings, 3)])
    assert [outcome.value for outcome in outcomes] == [4, None, 9]
    assert "negative" in outcomes[1].error


def test_stages_nest_and_progress_never_falls(settings: Settings):
    seen: list[float] = []
    context = Context(settings, InProcessPool(), lambda f, m: seen.append(f) if f is not None else None)
    with context.stage(0.0, 0.5):
        context.map("a", job_functions.square, [(settings, 1)] * 4)
    with context.stage(0.5, 1.0), context.stage(0.5, 1.0):
        context.map("b", job_functions.square, [(settings, 1)] * 2)
    assert seen == sorted(seen)
    assert 0.5 in seen
    assert seen[-1] == 1.0


def test_job_runs_and_keeps_result_log_and_progress(settings: Settings, quiet, monkeypatch):
    def work(context, n):
        context.log("hello")
        return {"sum": sum(o.value for o in context.map("x", job_functions.square, [(0, i) for i in range(n)]))}

    use(monkeypatch, work)
    job = jobs.submit(settings, "core.x:work", {"n": 3}, "Squares")
    assert jobs.status(settings, job).state == "queued"
    jobs.run_pending(settings, idle_seconds=0.7)
    record = jobs.status(settings, job)
    assert (record.state, record.result, record.progress) == ("done", {"sum": 5}, 1.0)
    assert [text for _, text in jobs.read_log(settings, job)] == ["hello"]


def test_the_same_job_is_not_queued_twice(settings: Settings, quiet):
    first = jobs.submit(settings, "core.x:f", {"a": 1}, "A")
    assert jobs.submit(settings, "core.x:f", {"a": 1}, "A") == first
    assert jobs.submit(settings, "core.x:f", {"a": 2}, "A") != first


def test_errors_end_a_job_with_their_text_and_retry_runs_it_again(settings: Settings, quiet, monkeypatch):
    calls = []

    def work(context):
        calls.append(1)
        if len(calls) == 1:
            raise InputError("no case.", "study.toml", "Add images.")

    use(monkeypatch, work)
    job = jobs.submit(settings, "core.x:f", {}, "A")
    jobs.run_pending(settings, idle_seconds=0.7)
    assert jobs.status(settings, job).state == "failed"
    assert jobs.status(settings, job).error == "study.toml: no case. Add images."
    jobs.retry(settings, job)
    jobs.run_pending(settings, idle_seconds=0.7)
    assert (jobs.status(settings, job).state, jobs.status(settings, job).attempts) == ("done", 2)


def test_cancel_stops_between_items_and_keeps_what_was_done(settings: Settings, quiet, monkeypatch, tmp_path: Path):
    def work(context):
        context.map("slow", job_functions.record_run, [(str(tmp_path), f"c{i}", 0.2) for i in range(50)])

    use(monkeypatch, work)
    job = jobs.submit(settings, "core.x:f", {}, "A")
    runner = threading.Thread(target=jobs.run_pending, args=(settings,), kwargs={"idle_seconds": 1.0})
    runner.start()
    while not list(tmp_path.glob("*.done")):
        time.sleep(0.05)
    jobs.cancel(settings, job)
    runner.join(30)
    assert jobs.status(settings, job).state == "cancelled"
    assert 0 < len(list(tmp_path.glob("*.done"))) < 50


def test_a_job_left_by_a_dead_runner_is_resumed(settings: Settings, quiet, monkeypatch):
    use(monkeypatch, lambda context: {})
    job = jobs.submit(settings, "core.x:f", {}, "A")
    assert jobs._take(settings) is not None  # a runner took it, then died
    assert jobs.status(settings, job).state == "running"
    jobs.run_pending(settings, idle_seconds=0.7)
    assert (jobs.status(settings, job).state, jobs.status(settings, job).attempts) == ("done", 2)


def test_only_one_runner_works_on_a_workspace(settings: Settings, quiet):
    jobs.submit(settings, "core.x:f", {}, "A")
    runner = threading.Thread(target=jobs.run_pending, args=(settings,), kwargs={"idle_seconds": 3.0})
    runner.start()
    deadline = time.monotonic() + 10
    while not jobs.runner_alive(settings) and time.monotonic() < deadline:
        time.sleep(0.02)
    start = time.monotonic()
    jobs.run_pending(settings, idle_seconds=60)
    assert time.monotonic() - start < 1
    runner.join()
    assert not jobs.runner_alive(settings)


def test_only_functions_of_the_product_are_job_functions(settings: Settings):
    for name in ("os:system", "core", "subprocess:run"):
        with pytest.raises(JobFailed, match="not a job function"):
            jobs.resolve(name)


def test_unknown_job(settings: Settings):
    with pytest.raises(InputError, match="no such job"):
        jobs.status(settings, "nope")


@pytest.mark.slow
def test_killed_workers_lose_no_case_and_recompute_none(settings: Settings, tmp_path: Path):
    with open_pool(replace(settings, workers=2)) as pool:
        context = Context(settings, pool)
        context.map("open", job_functions.square, [(None, 1)])
        assert isinstance(pool.pool, DaskPool)
        names = [f"case{i}" for i in range(12)]
        killer = threading.Thread(target=_kill_one_worker, args=(pool.pool, tmp_path))
        killer.start()
        outcomes = context.map("cases", job_functions.record_run, [(str(tmp_path), name, 0.3) for name in names])
        killer.join()
        assert [outcome.value for outcome in outcomes] == names
        runs = [line.split()[0] for line in (tmp_path / "runs.txt").read_text(encoding="utf-8").splitlines()]
        assert sorted(runs) == sorted(names)  # each case was computed exactly once
        # A task that kills its worker is tried again; one that always does becomes an error, and the pool lives.
        assert context.map("once", job_functions.die_once, [(str(tmp_path),)])[0].value > 0
        assert "worker died" in context.map("always", job_functions.die_always, [(str(tmp_path),)])[0].error
        assert context.map("after", job_functions.square, [(None, 4)])[0].value == 16


def _kill_one_worker(pool: DaskPool, folder: Path) -> None:
    while len(list(folder.glob("*.done"))) < 3:
        time.sleep(0.05)
    os.kill(next(iter(pool.client.run(os.getpid).values())), signal.SIGKILL)


def test_cancelled_is_raised_even_after_the_last_item(settings: Settings):
    context = Context(settings, InProcessPool(), cancelled=lambda: True)
    with pytest.raises(Cancelled):
        context.map("x", job_functions.square, [(0, 1)])


def test_a_scheduler_that_does_not_answer_is_explained(settings: Settings, monkeypatch):
    import distributed

    def refuse(*args, **kwargs):
        raise OSError("Timed out trying to connect")

    monkeypatch.setattr(distributed, "Client", refuse)
    with (
        pytest.raises(JobFailed, match="does not answer"),
        open_pool(replace(settings, scheduler="tcp://127.0.0.1:1")) as pool,
    ):
        Context(settings, pool).map("x", job_functions.square, [(None, 1)])
