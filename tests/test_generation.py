"""Sampling and training as verbs: folders that resume, cohorts that join a study, other programs as generators."""

import json
from pathlib import Path

import pytest

from core import generators, workflows
from core.errors import InputError, JobFailed
from core.pools import Cancelled, Context, InProcessPool
from core.study import PROVENANCE, CohortSpec, StudySpec, read_spec, write_spec
from core.volume import HALF, load
from core.workflows import generation

MODEL = "vae-gan"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An export of the smallest generator, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    generator = generators.build(MODEL, "half")
    generator.export(path, generator.state_dict(), {"step": "0"})
    return path


def test_samples_are_a_cohort_with_provenance_and_are_made_once(context, checkpoint, tmp_path):
    out = tmp_path / "samples"
    summary = workflows.generate(context, MODEL, str(checkpoint), 2, 5, str(out), "half")
    assert (summary["cases"], summary["failed"]) == (2, 0)
    files = sorted(out.glob("*.nii.gz"))
    assert [f.name for f in files] == ["vae-gan-s0005-0000.nii.gz", "vae-gan-s0005-0001.nii.gz"]
    assert load(files[0]).data.shape == HALF.shape
    record = json.loads((out / PROVENANCE).read_text(encoding="utf-8"))
    assert record["checkpoint"] == generators.build(MODEL, "half").load_checkpoint(checkpoint).sha256
    before = [f.stat().st_mtime_ns for f in files]
    bytes_before = files[0].read_bytes()
    workflows.generate(context, MODEL, str(checkpoint), 3, 5, str(out), "half")
    assert [f.stat().st_mtime_ns for f in files] == before
    assert len(list(out.glob("*.nii.gz"))) == 3
    files[0].unlink()
    workflows.generate(context, MODEL, str(checkpoint), 1, 5, str(out), "half")
    assert files[0].read_bytes() == bytes_before


def test_another_seed_does_not_mix_into_a_folder(context, checkpoint, tmp_path):
    workflows.generate(context, MODEL, str(checkpoint), 1, 0, str(tmp_path), "half")
    with pytest.raises(InputError, match="seed = 0"):
        workflows.generate(context, MODEL, str(checkpoint), 1, 1, str(tmp_path), "half")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "at least one"),
        ({"steps": 5}, "one pass"),
        ({"steps": -1}, "1 step"),
        ({"model": ""}, "Choose of"),
        ({"model": "stylegan"}, "unknown generator"),
        ({"checkpoint": "nowhere.pt"}, "no such checkpoint"),
        ({"grid": "full"}, "grid half, not of full"),
        ({"model": "ha-gan"}, "model vae-gan, not of ha-gan"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(changes, message, context, checkpoint, tmp_path):
    request = {"model": MODEL, "checkpoint": str(checkpoint), "n": 1, "seed": 0, "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=message):
        workflows.generate(context, **{**request, "grid": "half", "steps": 0, **changes})
    assert not (tmp_path / "out").exists()


def test_samples_join_a_study_and_are_evaluated(context, checkpoint, write_brains, tmp_path):
    write_brains(tmp_path / "real", 2)
    study = tmp_path / "study.toml"
    write_spec(StudySpec(name="s", grid="half", real=CohortSpec(images="real/*.nii.gz")), study)
    result = workflows.generate_for_study(context, str(study), "Mine", MODEL, str(checkpoint), 2, 0)
    assert "Mine" in read_spec(study).synthetic
    cases = workflows.read_results(context.settings, study).cases
    assert (cases["cohort"] == "Mine").sum() == 2
    assert result["out"]
    taken = read_spec(study).model_copy(update={"synthetic": {"Mine": CohortSpec(images="elsewhere/*.nii.gz")}})
    write_spec(taken, study)
    with pytest.raises(InputError, match="has a cohort 'Mine'"):
        workflows.generate_for_study(context, str(study), "Mine", MODEL, str(checkpoint), 2, 0)


def test_a_study_changed_while_samples_are_made_keeps_the_change(
    context, checkpoint, write_brains, tmp_path, monkeypatch
):
    write_brains(tmp_path / "real", 2)
    study = tmp_path / "study.toml"
    spec = StudySpec(name="s", grid="half", real=CohortSpec(images="real/*.nii.gz"))
    write_spec(spec, study)

    def meanwhile(*_):
        write_spec(spec.model_copy(update={"name": "theirs"}), study)
        return {"failed": 0}

    monkeypatch.setattr(workflows.generation, "generate", meanwhile)
    monkeypatch.setattr(workflows.generation, "evaluate", lambda *_: {})
    workflows.generate_for_study(context, str(study), "Mine", MODEL, str(checkpoint), 1, 0)
    assert read_spec(study).name == "theirs" and list(read_spec(study).synthetic) == ["Mine"]


def test_training_goes_from_folder_to_checkpoint_to_samples(context, write_brains, tmp_path):
    write_brains(tmp_path / "data", 4)
    run = tmp_path / "run"
    result = workflows.train_generator(
        context, MODEL, str(tmp_path / "data"), str(run), "half", steps=2, preview_every=1
    )
    assert result["steps"] == 2
    assert [caption for caption, _ in workflows.previews_of(str(run))] == ["step 1", "step 2"]
    made = workflows.generate(context, MODEL, str(run / "model.safetensors"), 1, 0, str(tmp_path / "samples"), "half")
    assert made["failed"] == 0


def test_a_cancelled_training_is_saved_and_goes_on(settings, write_brains, tmp_path):
    write_brains(tmp_path / "data", 4)
    arguments = (MODEL, str(tmp_path / "data"), str(tmp_path / "run"), "half")
    asked = iter([False] * 1 + [True] * 9)
    stopping = Context(settings, InProcessPool(), cancelled=lambda: next(asked))
    with pytest.raises(Cancelled):
        workflows.train_generator(stopping, *arguments, steps=3)
    again = workflows.train_generator(Context(settings, InProcessPool()), *arguments, steps=3, resume=True)
    assert again["steps"] == 3


def test_any_program_can_fill_a_cohort(context, tmp_path, write_brains):
    write_brains(tmp_path / "brains", 3)
    command = f"cp -r {tmp_path / 'brains'}/. {{out}}"
    made = workflows.generate_by_command(context, command, 3, 0, str(tmp_path / "out"))
    assert (made["cases"], made["failed"]) == (3, 0)
    assert json.loads((tmp_path / "out" / PROVENANCE).read_text(encoding="utf-8"))["command"] == command


def test_what_a_program_wrote_is_checked(context, tmp_path, write_brains):
    write_brains(tmp_path / "brains", 2)
    (tmp_path / "brains" / "brain-00.nii.gz").write_bytes(b"broken")
    made = workflows.generate_by_command(context, f"cp -r {tmp_path / 'brains'}/. {{out}}", 3, 0, str(tmp_path / "out"))
    reasons = {failure["case"]: failure["error"] for failure in made["failures"]}
    assert made["failed"] == 2 and "not a readable" in reasons["brain-00"] and "wrote 2 of 3" in reasons["missing"]


def test_a_program_that_fails_leaves_the_folder_free(context, tmp_path, write_brains):
    write_brains(tmp_path / "brains", 2)
    with pytest.raises(JobFailed, match="ended with 1"):
        workflows.generate_by_command(context, "false {out}", 2, 0, str(tmp_path / "out"))
    made = workflows.generate_by_command(context, f"cp -r {tmp_path / 'brains'}/. {{out}}", 2, 0, str(tmp_path / "out"))
    assert made["failed"] == 0
    with pytest.raises(InputError, match="another cohort: command"):
        workflows.generate_by_command(context, "true {out}", 2, 0, str(tmp_path / "out"))


def test_programs_that_cannot_be_run_are_refused(context, tmp_path):
    with pytest.raises(InputError, match=r"names no \{out\}"):
        workflows.generate_by_command(context, "true", 1, 0, str(tmp_path / "a"))
    with pytest.raises(InputError, match="cannot start"):
        workflows.generate_by_command(context, "no-such-program {out}", 1, 0, str(tmp_path / "b"))
    with pytest.raises(JobFailed, match="left no volume"):
        workflows.generate_by_command(context, "true {out}", 1, 0, str(tmp_path / "c"))
    with pytest.raises(JobFailed, match="ended with 1"):
        workflows.generate_by_command(context, "false {out}", 1, 0, str(tmp_path / "d"))


def test_the_cost_of_a_sample_is_measured_once(context, monkeypatch):
    first = workflows.estimate_generation(context, MODEL, "half")
    assert first["seconds"] > 0
    assert first["memory"] > 4e6
    monkeypatch.setattr(generation.generators, "build", None)
    assert workflows.estimate_generation(context, MODEL, "half") == first
