import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from core.__main__ import app
from core.metrics.features import frechet_distance

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("simulate", "split", "preprocess", "segment", "features", "metrics", "quality", "anatomy", "evaluate")


SPRUNG: list[int] = []


def spring() -> None:
    SPRUNG.append(1)


class Trap:
    """An object whose unpickling would be noticed."""

    def __reduce__(self):
        return spring, ()


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("SYNTHSCOPE_WORKERS", "0")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


def test_every_verb_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"python -m core {verb}" in readme


def test_the_command_works_from_a_shell_and_exits_with_2_on_bad_input(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "core",
        "features",
        "--in",
        str(tmp_path),
        "--encoder",
        "deepbet",
        "--out",
        "x.npz",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "no image found" in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_simulate_features_and_metrics_chain(run, tmp_path: Path):
    for name, seed in (("real", 1), ("gen", 2)):
        arguments = ("--out", tmp_path / name, "--n", 3, "--seed", seed, "--grid", "half")
        assert run("simulate", *arguments).exit_code == 0
        result = run("features", "--in", tmp_path / name, "--encoder", "deepbet", "--out", tmp_path / f"{name}.npz")
        assert result.exit_code == 0, result.output
    arrays = [np.load(tmp_path / f"{name}.npz") for name in ("real", "gen")]
    assert arrays[0]["cases"].tolist() == [f"sim-s0001-{i:04d}" for i in range(3)]
    out = tmp_path / "metrics.csv"
    named = f"G={tmp_path / 'gen.npz'}"
    result = run(
        "metrics", "--real", tmp_path / "real.npz", "--synthetic", named, "--metric", "fid", "--out", out, "--json"
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out).set_index("variant")
    expected = frechet_distance(arrays[0]["features"], arrays[1]["features"])
    assert table.loc["corrected", "value"] == pytest.approx(expected, rel=1e-4)
    from_folders = run(
        "metrics", "--real", tmp_path / "real", "--synthetic", f"G={tmp_path / 'gen'}",
        "--encoder", "deepbet", "--metric", "fid", "--out", tmp_path / "folders.csv",
    )  # fmt: skip
    assert from_folders.exit_code == 0, from_folders.output
    table = pd.read_csv(tmp_path / "folders.csv").set_index("variant")
    assert table.loc["corrected", "value"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def features_file(tmp_path: Path):
    """Write a features file of Gaussian rows; return its path."""

    def write(name: str, n: int = 12, width: int = 6, *, seed: int = 0, **changes) -> Path:
        rows = np.random.default_rng(seed).normal(size=(n, width))
        arrays = {"features": rows, "cases": np.array([f"{name}-{i}" for i in range(n)]), **changes}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return tmp_path / f"{name}.npz"

    return write


def test_metrics_of_files_come_with_details_and_a_copy_check(run, tmp_path: Path, features_file):
    rows = np.random.default_rng(3).normal(size=(12, 6))
    real, training = features_file("real", seed=1), features_file("training", features=rows)
    copies, others = features_file("copies", features=rows + 1e-3), features_file("others", seed=4)
    out = tmp_path / "out" / "scores.csv"
    result = run(
        "metrics", "--real", real, "--synthetic", f"A={copies}", "--synthetic", f"B={others}",
        "--training", training, "--metric", "fid", "--metric", "kid", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert set(table["metric"]) == {"fid", "kid"}
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert [d["fingerprint"] for d in record["details"]] == table["fingerprint"].tolist()
    assert set(table["fingerprint"]) == set(record["fingerprints"])
    check = pd.read_csv(out.with_name("copy_check.csv")).set_index("cohort")
    assert check.loc["A", "share"] == 1
    assert check.loc["B", "p_value"] > 0.05
    pairs = pd.read_csv(out.with_name("copies.csv")).query("cohort == 'A'")
    assert (pairs["case"].str.replace("copies", "training") == pairs["nearest_training"]).all()
    again = run(
        "metrics", "--real", others, "--synthetic", f"A={copies}", "--metric", "fid", "--out", tmp_path / "2.csv"
    )
    assert again.exit_code == 0
    other_cohort = pd.read_csv(tmp_path / "2.csv")
    assert set(other_cohort["fingerprint"]).isdisjoint(table["fingerprint"])  # another real cohort


def test_features_that_cannot_be_compared_are_refused_with_the_reason(run, tmp_path: Path, features_file):
    nan = np.zeros((12, 6))
    nan[3, 2] = np.nan
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, features=np.array([[Trap()]], dtype=object), cases=np.array(["a"]))
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Trap()))
    plain = tmp_path / "plain.npz"
    with plain.open("wb") as file:
        np.save(file, np.zeros((4, 4)))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(features_file("whole").read_bytes()[:400])
    real = features_file("real", encoder="deepbet", weights="a")
    for path, what in {
        features_file("narrow", width=5): "features have width 5, the real ones 6",
        features_file(
            "other", encoder="random-r50", weights="b"
        ): "features of 'random-r50'; the real ones are of 'dee",
        features_file("weights", encoder="deepbet", weights="b"): "other weights than the real ones",
        features_file("nan", features=nan): "1 of 12 rows hold NaN or Inf, the first is nan-3",
        features_file("one", n=1): "at least 2 are needed",
        features_file("words", features=np.array([["a"] * 6] * 12)): "expected numbers",
        features_file("unlike", cases=np.array(["a"])): "expected features (n, d) and cases (n,)",
        pickled: "not an npz of plain arrays",
        bare: "not an npz of plain arrays",
        plain: "not an npz of plain arrays",
        cut: "not an npz of plain arrays",
    }.items():
        result = run("metrics", "--real", real, "--synthetic", f"A={path}", "--out", tmp_path / "no.csv")
        assert result.exit_code == 2, path
        assert what in result.output, path
        assert str(path) in result.output
    assert not SPRUNG
    pickle.loads(bare.read_bytes())  # noqa: S301  (the trap works)
    assert SPRUNG
    assert not (tmp_path / "no.csv").exists()


def test_two_volumes_a_cohort_leave_gaps_and_exit_with_3(run, tmp_path: Path, features_file):
    real, gen = features_file("real", n=2), features_file("gen", n=2, seed=1)
    out = tmp_path / "metrics.csv"
    result = run("metrics", "--real", real, "--synthetic", f"A={gen}", "--out", out)
    assert result.exit_code == 3
    table = pd.read_csv(out)
    gaps = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["gaps"]
    blank = table[table["value"].isna()]
    assert {"precision", "coverage"} <= set(blank["metric"])
    assert {gap["what"].split(" ")[0].split("/")[0] for gap in gaps} >= set(blank["metric"])
    assert table["ci_low"].isna().all()  # no interval from two volumes


def test_constant_features_give_no_score_that_looks_perfect_unsaid(run, tmp_path: Path, features_file):
    real, gen = (features_file(name, features=np.ones((12, 6))) for name in ("real", "gen"))
    out = tmp_path / "metrics.csv"
    result = run("metrics", "--real", real, "--synthetic", f"A={gen}", "--metric", "fid", "--out", out)
    assert result.exit_code in (0, 3)
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert any("constant" in item["reason"] for item in record["warnings"] + record["gaps"])


def test_exit_3_when_some_cases_failed_and_the_rest_is_written(run, tmp_path: Path, write_brains):
    write_brains(tmp_path / "in", 2)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    out = tmp_path / "f.npz"
    result = run("features", "--in", tmp_path / "in", "--encoder", "deepbet", "--out", out, "--json")
    assert result.exit_code == 3
    assert len(np.load(out)["cases"]) == 2
    summary = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("{")))
    assert [failure["case"] for failure in summary["failures"]] == ["broken"]


def test_split_writes_disjoint_tables(run, tmp_path: Path):
    rng = np.random.default_rng(0)
    people = pd.DataFrame({"participant_id": [f"s{i}" for i in range(80)], "age": rng.uniform(20, 80, 80)})
    people["sex"] = np.where(np.arange(80) % 2, "F", "M")
    people.to_csv(tmp_path / "p.tsv", sep="\t", index=False)
    result = run("split", "--participants", tmp_path / "p.tsv", "--n", 20, "--seed", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    test, training = (pd.read_csv(tmp_path / "out" / f"{n}.tsv", sep="\t") for n in ("test", "training"))
    assert len(test) == 20
    assert set(test["participant_id"]).isdisjoint(training["participant_id"])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("metrics", "--real", "a", "--synthetic", "no-equals-sign"), "NAME=PATH"),
        (("metrics", "--real", "a", "--synthetic", "A=x", "--synthetic", "A=y"), "same name"),
        (("metrics", "--real", "a", "--synthetic", "A=x", "--metric", "beauty"), "unknown metric 'beauty'"),
        (("metrics", "--real", "a", "--synthetic", "real=x"), "cannot be called 'real'"),
        (("metrics", "--real", "a", "--synthetic", "A=x", "--encoder", "r5O"), "r5O"),
        (("evaluate", "nowhere.toml", "--out", "x"), "no such study file"),
        (("simulate", "--out", "x", "--n", "1", "--seed", "0", "--defect", "ugly"), "blur"),
        (("quality", "--real", "no.csv", "--synthetic", "A=no.csv"), "no such file"),
        (("anatomy", "--real", "no.csv", "--synthetic", "A=no.csv"), "no such file"),
    ],
)
def test_bad_arguments_say_what_to_do(run, arguments, what):
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.search(what, result.output)


def test_a_stopped_command_says_how_to_go_on(run, monkeypatch, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("core.workflows.evaluate", stop)
    result = run("evaluate", tmp_path / "study.toml", "--out", tmp_path / "out")
    assert result.exit_code == 130 and "the same command goes on" in result.output
