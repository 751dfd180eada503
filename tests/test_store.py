import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import store as store_module
from core.errors import CacheCorrupt, JobFailed
from core.store import Store, content_key, write_atomically, write_csv


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "workspace")


VALUES = {
    "json": {"a": [1, 2.5, None, "ü"]},
    "npz": {"features": np.arange(6, dtype=np.float32).reshape(2, 3)},
    "table": pd.DataFrame({"case": ["a", "b"], "value": [1.0, np.nan]}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_is_put_is_what_is_got(store: Store, kind: str):
    store.put(kind, "ab" * 32, VALUES[kind])
    read = store.get(kind, "ab" * 32)
    if kind == "table":
        pd.testing.assert_frame_equal(read, VALUES[kind])
    elif kind == "npz":
        np.testing.assert_array_equal(read["features"], VALUES[kind]["features"])
    else:
        assert read == VALUES[kind]


def test_key_depends_on_everything_and_on_nothing_else():
    base = content_key("op", 1, ["x", "y"], {"a": 1, "b": 2})
    assert base == content_key("op", 1, ["x", "y"], {"b": 2, "a": 1})
    others = [
        content_key("op2", 1, ["x", "y"], {"a": 1, "b": 2}),
        content_key("op", 2, ["x", "y"], {"a": 1, "b": 2}),
        content_key("op", 1, ["y", "x"], {"a": 1, "b": 2}),
        content_key("op", 1, ["x", "y"], {"a": 1, "b": 3}),
    ]
    assert len({base, *others}) == 5


def test_computed_once_and_failures_are_not_kept(store: Store):
    calls = []

    def compute():
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("first time fails")
        return {"n": len(calls)}

    with pytest.raises(ValueError, match="first time"):
        store.get_or_compute("json", "cd" * 32, compute)
    assert store.get_or_compute("json", "cd" * 32, compute) == {"n": 2}
    assert store.get_or_compute("json", "cd" * 32, compute) == {"n": 2}
    assert len(calls) == 2


@pytest.mark.parametrize("kind", VALUES)
def test_damage_is_noticed_set_aside_and_repaired(store: Store, kind: str):
    key = "ef" * 32
    store.put(kind, key, VALUES[kind])
    path = store.path(kind, key)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CacheCorrupt):
        store.get(kind, key)
    assert path.with_name(path.name + ".corrupt").exists()
    store.get_or_compute(kind, key, lambda: VALUES[kind])
    store.get(kind, key)


def test_a_pickle_is_never_loaded(store: Store):
    key = "aa" * 32
    path = store.path("npz", key)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        np.savez(file, features=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(CacheCorrupt):
        store.get("npz", key)


def test_interrupted_writing_leaves_nothing(tmp_path: Path):
    target = tmp_path / "result.json"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(JobFailed, match="disk is full"):
        write_atomically(target, fail)
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def _count(root: str, barrier, counter) -> None:
    barrier.wait()

    def compute() -> dict:
        with counter.get_lock():
            counter.value += 1
        return {"x": 1}

    Store(Path(root)).get_or_compute("json", "bb" * 32, compute)


def test_what_killed_writers_left_is_removed_after_a_day(store: Store):
    store.put("json", content_key("a", 1, [], {}), 1)
    (artefact,) = (store.root / "artefacts").rglob("*.json")
    old, young = (artefact.with_name(f".tmp-host-{name}.json") for name in ("old", "young"))
    for path, hours in ((old, 25), (young, 23), (artefact, 25)):
        path.touch()
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    assert store.remove_leftovers() == 1
    assert not old.exists() and young.exists() and artefact.exists()


def test_processes_of_one_host_compute_an_artefact_once(tmp_path: Path):
    spawn = multiprocessing.get_context("fork")
    barrier, counter = spawn.Barrier(4), spawn.Value("i", 0)
    workers = [spawn.Process(target=_count, args=(str(tmp_path), barrier, counter)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert counter.value == 1


def test_file_hash_follows_content_not_name(store: Store, tmp_path: Path, monkeypatch):
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert store.file_hash(first) == store.file_hash(second)
    known = store.file_hash(first)
    monkeypatch.setattr(store_module, "_sha256", lambda path: pytest.fail("the hash should be remembered"))
    assert store.file_hash(first) == known
    monkeypatch.undo()
    first.write_bytes(b"other")
    assert store.file_hash(first) != known


def test_hash_is_sha256(store: Store, tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2 test vector.
    assert store.file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JobFailed, match="cannot write"):
        store_module.write_json({}, tmp_path / "file" / "sub" / "a.json")


def test_a_long_table_is_written_in_blocks_with_one_header(tmp_path: Path, monkeypatch):
    cases = pd.Series(["=a", "b\udcff", "ü"], dtype=object)
    table = pd.DataFrame({"case": cases, "n": [1, 2, 3], "value": [0.1234567891, np.nan, 2.0]})
    write_csv(table, tmp_path / "whole.csv")
    assert (tmp_path / "whole.csv").read_text(encoding="utf-8") == (
        "case,n,value\n'=a,1,0.1234568\nb\\udcff,2,\nü,3,2\n"
    )
    monkeypatch.setattr(store_module, "ROWS", 2)
    write_csv(table, tmp_path / "blocks.csv")
    assert (tmp_path / "blocks.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    write_csv(table[:0], tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text(encoding="utf-8") == "case,n,value\n"
