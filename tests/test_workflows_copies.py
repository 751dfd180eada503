"""Copy check and inner products within a study: a cohort that memorised the training cohort is found, another is not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core import workflows
from core.pools import Context, InProcessPool
from core.settings import Settings
from core.store import Store
from core.study import PROVENANCE, CohortSpec, StudySettings, StudySpec, write_spec
from core.workflows import cohort_tasks
from core.workflows.evaluation import Evaluation

N = 5
PLAN = (("real", 1, ""), ("training", 3, ""), ("copies", 3, "memorised"), ("others", 4, ""))


@pytest.fixture(scope="module", autouse=True)
def _without_anatomy():
    """Segmentation takes minutes and is no subject here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluation, "compare_anatomy", lambda self: None)
        yield


@pytest.fixture(scope="module")
def study(_without_anatomy, tmp_path_factory) -> Path:
    """A study with a training cohort, a cohort that copies it and one that does not; evaluated once."""
    root = tmp_path_factory.mktemp("copies")
    context = Context(Settings(workspace=root / "workspace", workers=0), InProcessPool())
    for name, seed, defect in PLAN:
        workflows.simulate_cohort(context, str(root / name), N, seed, "half", defect)
    write_spec(StudySpec(**spec()), root / "study.toml")
    workflows.evaluate(context, str(root / "study.toml"), str(root / "out"))
    return root / "study.toml"


@pytest.fixture
def settings(study) -> Settings:
    return Settings(workspace=study.parent / "workspace", workers=0)


def spec(**changes) -> dict:
    cohorts = {
        name: CohortSpec(images=f"{name}/*.nii.gz", participants=f"{name}/participants.tsv") for name, _, _ in PLAN
    }
    return {
        "name": "copies",
        "grid": "half",
        "real": cohorts["real"],
        "training": cohorts["training"],
        "synthetic": {"Copies": cohorts["copies"], "Others": cohorts["others"]},
        "settings": StudySettings(encoders=("deepbet",), n_boot=10),
        **changes,
    }


def test_the_memorised_cohort_is_found_in_every_space_and_the_other_is_not(study, settings):
    results = workflows.read_results(settings, study)
    checks = results.copy_check.set_index(["cohort", "space"])
    assert set(checks.index) == {(c, s) for c in ("Copies", "Others") for s in ("deepbet", "image")}
    assert (checks.loc["Copies", "share"] == 1).all()
    assert checks.loc["Copies", "p_binomial"].to_numpy() == pytest.approx(0.5**N)
    assert (checks.loc["Copies", "p_value"] < 0.02).all()
    assert (checks.loc["Others", "p_value"] > 0.05).all()
    assert (checks[["n_synthetic", "n_reference"]] == N).all(axis=None)


def test_every_copy_is_listed_beside_the_training_case_it_was_made_from(study, settings):
    results = workflows.read_results(settings, study)
    copies = results.copies[results.copies["cohort"] == "Copies"]
    assert len(copies) == 2 * N
    assert (copies["case"].str[-10:] == copies["nearest_training"].str[-10:]).all()
    assert (copies["ratio"] < 0.9).all()
    for _, group in results.copies.groupby(["cohort", "space"]):
        assert len(group) == N
        assert group["ratio"].is_monotonic_increasing  # worst first
        assert group["distance_training"].to_numpy() == pytest.approx(group["ratio"] * group["distance_held_out"])


def test_image_distances_are_those_of_the_volumes(study, settings):
    from core.study import read_study
    from core.workflows import load_case

    row = workflows.read_results(settings, study).copies.query("space == 'image' and cohort == 'Others'").iloc[2]
    plan = read_study(study)
    synthetic = load_case(settings, plan, "Others", row["case"]).data.astype(np.float64)
    training = load_case(settings, plan, "training", row["nearest_training"]).data
    held_out = [load_case(settings, plan, "real", case.case_id).data for case in plan.real.cases]
    assert row["distance_training"] == pytest.approx(np.linalg.norm(synthetic - training), rel=1e-5)
    nearest = min(np.linalg.norm(synthetic - volume) for volume in held_out)
    assert row["distance_held_out"] == pytest.approx(nearest, rel=1e-5)


def test_the_map_holds_every_real_and_synthetic_case_once_for_each_method(study, settings):
    table = workflows.read_results(settings, study).map
    assert set(table["method"]) == {"pca", "umap"}
    for _, group in table.groupby(["encoder", "method"]):
        assert sorted(set(group["cohort"])) == ["Copies", "Others", "real"]
        assert len(group) == group.groupby(["cohort", "case"]).ngroups == 3 * N
        assert np.isfinite(group[["x", "y"]]).all(axis=None)
    pca, umap = (table[table["method"] == method] for method in ("pca", "umap"))
    assert (pca["share_x"] >= pca["share_y"]).all() and (pca["share_x"] + pca["share_y"] <= 1).all()
    assert umap[["share_x", "share_y"]].isna().all(axis=None)


def test_without_a_training_cohort_there_is_a_labelled_gap_and_no_number(study, settings, tmp_path):
    path = study.with_name("no-training.toml")
    write_spec(StudySpec(**spec(training=None)), path)
    context = Context(settings, InProcessPool())
    summary = workflows.evaluate(context, str(path), str(tmp_path))
    assert pd.read_csv(tmp_path / "copy_check.csv").empty
    assert pd.read_csv(tmp_path / "copies.csv").empty
    gaps = json.loads((tmp_path / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert [gap["reason"] for gap in gaps if gap["what"] == "copy check"] == [
        "no training cohort is given, so no copy check"
    ]
    assert summary["gaps"] == len(gaps) - 1  # it was not asked for, so nothing failed


def test_people_and_volumes_on_both_sides_are_warned_about(study, settings, tmp_path):
    folder = study.parent / "leak"
    shutil.copytree(study.parent / "training", folder, dirs_exist_ok=True)
    leaked = sorted((study.parent / "real").glob("*.nii.gz"))[0]
    shutil.copyfile(leaked, folder / leaked.name)
    table = pd.read_csv(folder / "participants.tsv", sep="\t")
    table.loc[len(table)] = {**table.iloc[0], "participant_id": leaked.name.removesuffix(".nii.gz")}
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    path = study.with_name("leak.toml")
    training = CohortSpec(images="leak/*.nii.gz", participants="leak/participants.tsv")
    write_spec(StudySpec(**spec(training=training)), path)
    workflows.evaluate(Context(settings, InProcessPool()), str(path), str(tmp_path))
    found = [
        w["reason"]
        for w in json.loads((tmp_path / PROVENANCE).read_text(encoding="utf-8"))["warnings"]
        if w["what"] == "copy check"
    ]
    assert any("1 people are in the training and in the real cohort" in reason for reason in found)
    assert any("1 real volumes are in the training cohort too" in reason for reason in found)


def test_a_second_run_multiplies_nothing_and_scratch_is_removed(study, settings, tmp_path, monkeypatch):
    assert not list((settings.workspace / "scratch").iterdir())
    monkeypatch.setattr(cohort_tasks, "gram_matrix", lambda *args, **kwargs: pytest.fail("computed again"))
    monkeypatch.setattr(Store, "put", lambda *args, **kwargs: pytest.fail("an artefact was computed again"))
    workflows.evaluate(Context(settings, InProcessPool()), str(study), str(tmp_path))
    for name in ("copies.csv", "copy_check.csv", "map.csv", "details.json"):
        assert (tmp_path / name).read_bytes() == (study.parent / "out" / name).read_bytes()


def test_inner_products_that_fail_are_a_labelled_gap(study, settings, tmp_path, monkeypatch):
    from core.errors import InputError

    def no_room(*args, **kwargs):
        raise InputError("12.8 GB are needed, 1 GB is free.", "scratch", "Free some space.")

    monkeypatch.setattr(cohort_tasks, "gram_matrix", no_room)
    path = study.with_name("other.toml")
    write_spec(StudySpec(**spec(synthetic={"Fewer": CohortSpec(images="others/*-000[0-3].nii.gz")})), path)
    summary = workflows.evaluate(Context(settings, InProcessPool()), str(path), str(tmp_path))
    assert summary["gaps"] > 0
    checks = pd.read_csv(tmp_path / "copy_check.csv")
    assert set(checks["space"]) == {"deepbet"}
    gaps = json.loads((tmp_path / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert any(gap["what"] == "copy check image" and "12.8 GB" in gap["reason"] for gap in gaps)
