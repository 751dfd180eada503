"""Several processes of the server on one workspace, all acting at the same moment."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from core import jobs, workflows
from core.settings import Settings
from tests.cluster import wait_for

PROCESSES = 4
FORK = multiprocessing.get_context("fork")  # the processes are to act, not to import


def at_once(act: Callable[[int], object]) -> None:
    """Have several processes do something at the same moment, each given its number."""
    barrier = FORK.Barrier(PROCESSES)

    def take_part(number: int) -> None:
        barrier.wait(60)
        act(number)

    processes = [FORK.Process(target=take_part, args=(number,)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES


def test_no_study_is_lost_when_several_are_opened_at_once(settings: Settings, tmp_path: Path, write_brains):
    write_brains(tmp_path / "brains", 2)
    studies = [tmp_path / f"{process}-{turn}" / "study.toml" for process in range(PROCESSES) for turn in range(10)]
    for path in studies:
        path.parent.mkdir()
        path.write_text(f'name = "{path.parent.name}"\ngrid = "half"\n[real]\nimages = "{tmp_path}/brains/*.nii.gz"\n')

    def act(number: int) -> None:
        for turn in range(10):
            workflows.remember_study(settings, str(tmp_path / f"{number}-{turn}"))

    at_once(act)
    assert set(workflows.known_studies(settings)) >= {str(path) for path in studies}


def runners(settings: Settings) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("SYNTHSCOPE_WORKSPACE") == str(settings.workspace)
            if ours and process.cmdline()[1:] == ["-m", "core.jobs"]:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_new_workspace_gets_one_runner_however_many_ask_at_once(settings: Settings):
    def act(number: int) -> None:
        for name in (*(f"{number}-{turn}" for turn in range(5)), "the same"):
            jobs.submit(settings, "core.no_such_module:f", {"name": name}, "A")

    at_once(act)
    try:
        wait_for(lambda: not any(job.active for job in jobs.list_jobs(settings)), 60)
        found = jobs.list_jobs(settings)
        assert len(found) >= 5 * PROCESSES + 1
        assert {(job.state, job.attempts) for job in found} == {("failed", 1)}
        time.sleep(2)  # those that found another at work have ended
        assert len(runners(settings)) == 1
        log = (settings.workspace / "runner.log").read_text(encoding="utf-8")
        assert "Traceback" not in log, log
    finally:
        for runner in runners(settings):
            os.kill(runner.pid, 9)
