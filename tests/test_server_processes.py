"""Several processes of the server on one workspace, all acting at the same moment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from core import jobs, workflows
from core.settings import Settings
from tests.cluster import ROOT, environment, wait_for

PROCESSES = 4
WAIT = "import sys, time; from pathlib import Path; from core.settings import from_environment; "
WAIT += "from core import jobs, workflows; settings = from_environment(); "
WAIT += "print(flush=True); sys.stdin.readline(); "  # ready, and told to go


def at_once(workspace: Path, act: str) -> None:
    """Have several processes do something at the same moment; ``sys.argv[1]`` is the number of each."""
    command = [sys.executable, "-c", WAIT + act]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = environment(workspace)
    processes = [subprocess.Popen([*command, str(n)], cwd=ROOT, env=env, **pipes) for n in range(PROCESSES)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_no_study_is_lost_when_several_are_opened_at_once(settings: Settings, tmp_path: Path, write_brains):
    write_brains(tmp_path / "brains", 2)
    studies = [tmp_path / f"{process}-{turn}" / "study.toml" for process in range(PROCESSES) for turn in range(10)]
    for path in studies:
        path.parent.mkdir()
        path.write_text(f'name = "{path.parent.name}"\ngrid = "half"\n[real]\nimages = "{tmp_path}/brains/*.nii.gz"\n')
    act = f"[workflows.remember_study(settings, f'{tmp_path}/{{sys.argv[1]}}-{{turn}}') for turn in range(10)]"
    at_once(settings.workspace, act)
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
    act = "job = lambda n: jobs.submit(settings, 'core.no_such_module:f', {'n': n}, 'A'); "
    act += "[job(f'{sys.argv[1]}-{turn}') for turn in range(5)]; job('the same')"
    at_once(settings.workspace, act)
    try:
        wait_for(lambda: not any(job.active for job in jobs.list_jobs(settings)), 60)
        found = jobs.list_jobs(settings)
        assert len(found) >= 5 * PROCESSES + 1
        assert {(job.state, job.attempts) for job in found} == {("failed", 1)}
        time.sleep(2)  # those that found another at work have ended
        assert len(runners(settings)) == 1
        log = (settings.workspace / "runner.log").read_text()
        assert "Traceback" not in log, log
    finally:
        for runner in runners(settings):
            os.kill(runner.pid, 9)
