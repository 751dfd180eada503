import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from core import metrics, quality, workflows
from core.errors import InputError
from core.pools import Context
from core.settings import Settings
from core.store import Store
from core.study import PROVENANCE, CohortSpec, StudySettings, StudySpec, read_spec, read_study, write_spec
from core.volume import HALF
from core.workflows import tasks
from core.workflows.cohorts import prepare
from core.workflows.results import DETAILS

N = 5


def write_qc(path: Path, subjects: list[str], *, low: float = 0.7, seed: int = 0) -> None:
    scores = np.random.default_rng(seed).uniform(low, 0.95, (len(subjects), 8))
    quality.write_qc(pd.DataFrame(scores, index=subjects, columns=list(quality.QC_SCORES)), path)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory) -> Path:
    """Two small simulated cohorts with true volumes and made-up QC scores, shared by the tests here."""
    from core.pools import InProcessPool

    root = tmp_path_factory.mktemp("cohorts")
    context = Context(Settings(workspace=root / "workspace", workers=0), InProcessPool())
    for name, seed, defect in (("real", 1, ""), ("gen", 2, "shrunken-hippocampus:0.5")):
        workflows.simulate_cohort(context, str(root / name), N, seed, "half", defect)
        cases = pd.read_csv(root / name / "participants.tsv", sep="\t")["participant_id"].tolist()
        write_qc(root / name / "qc.csv", cases, seed=seed)
    return root


def study_of(cohorts: Path, folder: Path, **changes) -> Path:
    """Copy the cohorts into ``folder`` and write a study over them."""
    for name in ("real", "gen"):
        shutil.copytree(cohorts / name, folder / name)
    spec = {
        "name": "test",
        "grid": "half",
        "real": CohortSpec(
            images="real/*.nii.gz",
            participants="real/participants.tsv",
            volumes="real/true_volumes.csv",
            qc="real/qc.csv",
        ),
        "synthetic": {"Gen": CohortSpec(images="gen/*.nii.gz", volumes="gen/true_volumes.csv", qc="gen/qc.csv")},
        "settings": StudySettings(encoders=("deepbet",), n_boot=20),
    }
    write_spec(StudySpec(**{**spec, **changes}), folder / "study.toml")
    return folder / "study.toml"


def test_a_study_gives_the_three_tables(cohorts: Path, context: Context, tmp_path: Path):
    path = study_of(cohorts, tmp_path)
    summary = workflows.evaluate(context, str(path), str(tmp_path / "out"))
    assert summary["failed"] == 0
    assert summary["cases"] == 2 * N
    scores = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert list(scores.columns) == (
        [
            "cohort",
            "metric",
            "encoder",
            "variant",
            "value",
            "ci_low",
            "ci_high",
            "floor",
            "n_real",
            "n_synthetic",
            "direction",
            "fingerprint",
        ]
    )
    assert set(zip(scores["metric"], scores["variant"], strict=True)) == {
        (m.name, m.variant) for m in metrics.METRICS.values()
    }
    assert (scores[["n_real", "n_synthetic"]] == N).all(axis=None)
    details = json.loads((tmp_path / "out" / "details.json").read_text(encoding="utf-8"))
    identity = ["cohort", "metric", "encoder", "variant", "fingerprint"]
    assert [[d[i] for i in identity] for d in details] == scores[identity].fillna("").to_numpy().tolist()
    assert all(d["settings"] for d, value in zip(details, scores["value"], strict=True) if np.isfinite(value))
    effects = pd.read_csv(tmp_path / "out" / "effect_sizes.csv")
    assert len(effects) == 49
    strongest = effects.loc[effects["cohens_d"].abs().idxmax()]
    assert strongest["region"] == "hippocampus"
    assert strongest["cohens_d"] > 0  # real minus synthetic: the synthetic hippocampus was shrunk
    gate = pd.read_csv(tmp_path / "out" / "quality.csv")
    assert gate["cohort"].tolist() == ["real", "Gen"]
    provenance = json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))
    assert provenance["complete"] is True
    assert set(scores["fingerprint"]) <= set(provenance["fingerprints"])
    assert {c["origin"] for c in provenance["cohorts"]} == {
        "simulated",
        "control: hippocampus 50% smaller",
    }


def test_a_study_that_names_metrics_gets_these_alone(cohorts: Path, context: Context, tmp_path: Path):
    named = StudySettings(encoders=("deepbet",), metrics=("fid", "sharpness"), n_boot=20)
    path = study_of(cohorts, tmp_path, settings=named)
    workflows.evaluate(context, str(path), str(tmp_path / "out"))
    scores = pd.read_csv(tmp_path / "out" / "metrics.csv")
    pairs = list(zip(scores["metric"], scores["variant"], strict=True))
    assert sorted(pairs) == [("fid", "corrected"), ("fid", "published"), ("sharpness", "corrected")]
    assert len(pd.read_csv(tmp_path / "out" / "effect_sizes.csv")) == 49


def test_the_second_run_computes_nothing_and_writes_the_same_bytes(cohorts, context, settings, tmp_path, monkeypatch):
    path = study_of(cohorts, tmp_path)
    workflows.evaluate(context, str(path), str(tmp_path / "first"))
    monkeypatch.setattr(Store, "put", lambda *args, **kwargs: pytest.fail("an artefact was computed again"))
    workflows.evaluate(context, str(path), str(tmp_path / "second"))
    for name in ("metrics.csv", DETAILS, "quality.csv", "effect_sizes.csv", "cases.csv", PROVENANCE):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    stored = workflows.read_results(settings, path)
    pd.testing.assert_frame_equal(
        stored.effect_sizes[["cohens_d"]], pd.read_csv(tmp_path / "first" / "effect_sizes.csv")[["cohens_d"]]
    )


def test_a_renamed_cohort_comes_from_the_cache_and_one_that_left_is_not_read(
    cohorts, context, settings, tmp_path, monkeypatch
):
    path = study_of(cohorts, tmp_path)
    workflows.evaluate(context, str(path), str(tmp_path / "first"))
    spec = read_spec(path)
    workflows.change_study(
        settings, str(path), spec, spec.model_copy(update={"synthetic": {"Renamed": spec.synthetic["Gen"]}})
    )
    left = workflows.read_results(settings, path)
    assert left.details == [] and set(left.qc["cohort"]) == set(left.cases["cohort"]) == {"real"}
    assert left.metrics.empty and left.regional.empty and left.map["cohort"].isin(["real"]).all()
    assert "was called Gen" in workflows.to_compute(settings, read_study(path))[0]
    monkeypatch.setattr(Store, "put", lambda *args, **kwargs: pytest.fail("an artefact was computed again"))
    workflows.evaluate(context, str(path), str(tmp_path / "second"))
    assert workflows.to_compute(settings, read_study(path)) == []
    first, second = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("first", "second"))
    assert set(second["cohort"]) == {"Renamed"}
    pd.testing.assert_frame_equal(first.drop(columns="cohort"), second.drop(columns="cohort"))


def test_without_training_cohort_no_copies_of_it_are_read(cohorts, settings, tmp_path):
    path = study_of(cohorts, tmp_path)
    folder = workflows.results_folder(settings, path)
    for training in (None, CohortSpec(images="real/*.nii.gz")):
        for name in ("copies", "copy_check"):
            (folder / f"{name}.csv").write_text("cohort,space\nGen,image\n", encoding="utf-8")
        write_spec(read_spec(path).model_copy(update={"training": training}), path)
        results = workflows.read_results(settings, path)
        assert len(results.copies) == len(results.copy_check) == (training is not None)


def test_a_study_without_results_reads_as_empty_tables_with_their_columns(settings, tmp_path):
    results = workflows.read_results(settings, tmp_path / "study.toml")
    assert results.details == []
    assert results.provenance == {}
    tables = (results.map, results.copies, results.copy_check)
    assert [table.empty for table in tables] == [True] * 3
    assert {"x", "y", "case"} <= set(results.map)
    assert {"ratio", "nearest_training"} <= set(results.copies)
    assert {"share", "p_value"} <= set(results.copy_check)


def test_a_table_with_cells_that_are_no_numbers_is_read_all_the_same(settings, tmp_path):
    folder = workflows.results_folder(settings, tmp_path / "study.toml")
    lines = ["subject,cohort,thalamus,brainstem,gated", "'=1,007,0.25,1,True", "b,,,x,False", "'c,nan,inf,3,yes"]
    (folder / "qc.csv").write_text("\n".join(lines), encoding="utf-8")
    table = workflows.read_results(settings, tmp_path / "study.toml").qc
    assert table["subject"].tolist() == ["=1", "b", "'c"] and table["cohort"].tolist() == ["007", "", "nan"]
    assert table["thalamus"].tolist() == pytest.approx([0.25, np.nan, np.inf], nan_ok=True)
    assert table["brainstem"].tolist() == pytest.approx([1, np.nan, 3], nan_ok=True)
    assert table["gated"].tolist() == [True, False, False]


def test_bad_files_are_rows_with_a_reason_and_the_others_go_on(cohorts, context, tmp_path):
    path = study_of(cohorts, tmp_path)
    gen = tmp_path / "gen"
    good = sorted(gen.glob("*.nii.gz"))
    (gen / "a-empty.nii.gz").touch()
    (gen / "b-truncated.nii.gz").write_bytes(good[0].read_bytes()[:5000])
    shutil.copyfile(good[0], gen / "z-copy.nii.gz")
    image = nib.load(good[0])
    nib.save(nib.Nifti1Image(np.stack([image.get_fdata()] * 2, -1), image.affine), gen / "d-4d.nii.gz")
    flipped = np.ascontiguousarray(image.get_fdata()[:, ::-1]).astype(np.float32)
    nib.save(nib.Nifti1Image(flipped, image.affine), gen / "e-flipped.nii.gz")
    summary = workflows.evaluate(context, str(path), str(tmp_path / "out"))
    cases = pd.read_csv(tmp_path / "out" / "cases.csv").set_index("case")
    rejected = cases[cases["status"] == "rejected"]["reason"]
    assert set(rejected.index) == {"a-empty", "b-truncated", "z-copy", "d-4d", "e-flipped"}
    for case, what in {
        "a-empty": "empty",
        "b-truncated": "read to the end",
        "z-copy": f"same content as {good[0].name[:-7]}",
        "d-4d": "3D",
        "e-flipped": "posterior-anterior flipped",
    }.items():
        assert what in rejected[case]
    assert summary["failed"] == 5
    assert (pd.read_csv(tmp_path / "out" / "metrics.csv")["n_synthetic"] == N).all()


def test_missing_weights_are_a_gap_and_the_other_encoder_goes_on(cohorts, context, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    settings = StudySettings(encoders=("medicalnet-r50", "deepbet"), n_boot=20)
    path = study_of(cohorts, tmp_path, settings=settings)
    workflows.evaluate(context, str(path), str(tmp_path / "out"))
    scores = pd.read_csv(tmp_path / "out" / "metrics.csv")
    assert set(scores["encoder"].dropna()) == {"deepbet"}
    gaps = json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert any(gap["what"] == "medicalnet-r50" and "resnet_50.pth" in gap["reason"] for gap in gaps)


def test_an_unreadable_real_cohort_stops_with_the_reason(cohorts, context, tmp_path):
    path = study_of(cohorts, tmp_path)
    for file in (tmp_path / "real").glob("*.nii.gz"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"no real volume can be used.*empty"):
        workflows.evaluate(context, str(path))


def test_tables_whose_subjects_do_not_match_are_a_gap(cohorts, context, tmp_path):
    path = study_of(cohorts, tmp_path)
    table = tmp_path / "gen" / "true_volumes.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("shrunken-hippocampus-s0002", "other"))
    workflows.evaluate(context, str(path), str(tmp_path / "out"))
    gaps = json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert any(gap["what"] == "anatomy" and "no subject of the table" in gap["reason"] for gap in gaps)
    assert pd.read_csv(tmp_path / "out" / "effect_sizes.csv").empty


def test_volumes_from_different_engines_are_not_compared(cohorts, context, tmp_path, monkeypatch):
    path = study_of(cohorts, tmp_path, synthetic={"Gen": CohortSpec(images="gen/*.nii.gz")})
    real = pd.read_csv(tmp_path / "real" / "true_volumes.csv").iloc[0].drop("subject").astype(float)
    row = {"volumes": real.to_dict(), "qc": dict.fromkeys(quality.QC_SCORES, 0.8)}
    monkeypatch.setattr(tasks, "segment", lambda *args: row)
    workflows.evaluate(context, str(path), str(tmp_path / "out"))
    gaps = json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert any("real volumes from imported" in gap["reason"] for gap in gaps)
    assert pd.read_csv(tmp_path / "out" / "effect_sizes.csv").empty


def test_changed_encoder_or_seed_changes_the_fingerprint_and_a_changed_name_does_not(cohorts, context, tmp_path):
    prints = []
    for index, changes in enumerate(
        ({}, {"name": "renamed"}, {"settings": StudySettings(encoders=("deepbet",), n_boot=20, seed=5)})
    ):
        path = study_of(cohorts, tmp_path / str(index), **changes)
        workflows.evaluate(context, str(path), str(tmp_path / str(index) / "out"))
        prints.append(set(pd.read_csv(tmp_path / str(index) / "out" / "metrics.csv")["fingerprint"]))
    assert prints[0] == prints[1]
    assert prints[0].isdisjoint(prints[2])


def test_raw_cohorts_are_preprocessed_once(cohorts, context, settings, tmp_path, monkeypatch):
    calls = []

    def stand_in(path, grid, *, template, threads):
        from core.preprocess import Preprocessed
        from core.volume import template as atlas

        calls.append(path)
        return Preprocessed(atlas(HALF), np.eye(4), (), 1400.0)

    monkeypatch.setattr(tasks.preprocess, "preprocess", stand_in)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "scan.nrrd").write_bytes(b"raw scan")
    spec = StudySpec(name="x", grid="half", real=CohortSpec(images="raw", raw=True))
    write_spec(spec, tmp_path / "study.toml")
    study = read_study(tmp_path / "study.toml")
    for _ in range(2):
        prepared = prepare(context, study, study.real)
        assert [source.case_id for source in prepared.sources] == ["scan"]
    assert len(calls) == 1


def test_a_simulated_folder_resumes_and_refuses_another_cohort(context, tmp_path):
    out = tmp_path / "sim"
    workflows.simulate_cohort(context, str(out), 2, 1, "half", "")
    first = {p.name: p.stat().st_mtime_ns for p in out.glob("*.nii.gz")}
    workflows.simulate_cohort(context, str(out), 3, 1, "half", "")
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.nii.gz")}
    assert len(after) == 3
    assert first.items() <= after.items()
    with pytest.raises(InputError, match="another cohort: seed = 1"):
        workflows.simulate_cohort(context, str(out), 3, 2, "half", "")


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"encoders": ("random-r5O",)}, "random-r5O"), ({"segmenter": "x"}, "'x'"), ({"metrics": ("fld",)}, "'fld'")],
)
def test_a_misspelt_choice_is_refused_before_any_work(cohorts, context, tmp_path, settings, what):
    path = study_of(cohorts, tmp_path, settings=StudySettings(**settings))
    with pytest.raises(InputError, match=what):
        workflows.evaluate(context, str(path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_cohort_of_one_case_leaves_gaps_with_reasons_and_no_numbers_that_look_right(cohorts, context, tmp_path):
    path = study_of(cohorts, tmp_path)
    for file in sorted((tmp_path / "gen").glob("*.nii.gz"))[1:]:
        file.unlink()
    summary = workflows.evaluate(context, str(path), str(tmp_path / "out"))
    assert summary["gaps"] > 0
    scores = pd.read_csv(tmp_path / "out" / "metrics.csv")
    corrected = scores[scores["variant"] == "corrected"]
    assert corrected["value"].isna().all()
    assert pd.read_csv(tmp_path / "out" / "effect_sizes.csv").empty
    gaps = json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))["gaps"]
    assert any(gap["what"] == "anatomy" and "at least 3" in gap["reason"] for gap in gaps)


def test_real_volumes_in_a_synthetic_cohort_are_warned_of(context, write_brains, tmp_path):
    write_brains(tmp_path / "real", 3)
    shutil.copytree(tmp_path / "real", tmp_path / "same")
    workflows.evaluate_folders(
        context,
        str(tmp_path / "real"),
        {"Same": str(tmp_path / "same")},
        str(tmp_path / "m.csv"),
        ("deepbet",),
        ("fid",),
    )
    warnings = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["warnings"]
    assert any("3 of 3 volumes are real ones" in w["reason"] and w["cohort"] == "Same" for w in warnings)


def test_a_missing_folder_is_called_missing(context, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        workflows.evaluate_folders(context, str(tmp_path / "none"), {"A": str(tmp_path)}, str(tmp_path / "m.csv"))
