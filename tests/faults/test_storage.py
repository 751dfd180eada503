"""Disks that are full or read-only, locks that nobody gives back, hosts that write the same thing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from core import store as stores
from core.store import Store
from tests.cluster import ROOT, artefacts, run, tables
from tests.faults.scene import Scene


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of its own, which can be full and read-only; skip where this is not allowed."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_are_named_and_cost_nothing_that_was_finished(whole, tmp_path: Path):
    data, expected, count = whole
    with small_disk(tmp_path / "disk", "40m") as disk:
        scene = Scene(data, tmp_path, expected, workspace=disk / "workspace")
        (disk / "filler").write_bytes(b"\0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - 120_000))
        errors = run(scene.workspace, *scene.arguments)
        assert "the disk is full" in errors
        assert "unexpected" not in errors
        assert "Traceback" not in errors
        scene.kept = artefacts(scene.workspace)
        assert 0 < len(scene.kept) < count
        assert not list(scene.workspace.rglob(".tmp-*"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        errors = run(scene.workspace, *scene.arguments)
        assert "cannot write (Read-only file system)" in errors
        assert "unexpected" not in errors
        assert "Traceback" not in errors
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        (disk / "filler").unlink()
        run(scene.workspace, *scene.arguments, code=0)
        scene.check()


def test_a_lock_whose_holder_was_killed_is_free_and_one_that_stalls_is_passed_by(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stores, "LOCK_SECONDS", 1.0)
    store = Store(tmp_path)
    hold = "import sys, time; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); print(flush=True); time.sleep(99)"
    for key, fault in (("ab" * 32, signal.SIGKILL), ("cd" * 32, signal.SIGSTOP)):
        lock = store.folder("locks") / f"{key}.lock"
        with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE) as holder:
            try:
                assert holder.stdout is not None
                holder.stdout.readline()
                holder.send_signal(fault)
                assert store.get_or_compute("json", key, lambda: 7) == 7
            finally:
                holder.kill()
    assert store.get("json", "cd" * 32) == 7


def test_a_file_system_without_locks_is_enough(tmp_path: Path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(stores.FileLock, "acquire", refuse)
    assert Store(tmp_path).get_or_compute("json", "ab" * 32, lambda: 7) == 7


WRITER = """
import sys, numpy as np
from pathlib import Path
from core.store import Store
store = Store(Path(sys.argv[1]))
for turn in range(150):
    store.put("npz", "ab" * 32, {"x": np.full(20_000, float(sys.argv[2]))}, {"host": sys.argv[2]})
"""


def test_hosts_that_write_one_artefact_never_show_half_of_it(tmp_path: Path):
    store = Store(tmp_path)
    store.put("npz", "ab" * 32, {"x": np.full(20_000, 1.0)})
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    hosts = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), host], env=env) for host in "12"]
    reads = 0
    while any(host.poll() is None for host in hosts):
        values = store.get("npz", "ab" * 32)["x"]  # a torn file would raise, or mix the two
        assert len(values) == 20_000
        assert (values == values[0]).all()
        reads += 1
    assert [host.returncode for host in hosts] == [0, 0]
    assert reads > 50
    assert not list(tmp_path.rglob("*.corrupt"))


@pytest.mark.slow
def test_two_commands_at_once_on_one_workspace_give_the_same_tables(whole, tmp_path: Path):
    data, expected, _ = whole
    scenes = [Scene(data, tmp_path / name, expected, workspace=tmp_path / "workspace") for name in "ab"]
    processes = [scene.start() for scene in scenes]
    for scene, process in zip(scenes, processes, strict=True):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert tables(scene.out) == expected
        scene.check()
