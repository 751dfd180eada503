import json
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
