import json
import os
from pathlib import Path

import pytest

from core.errors import InputError
from core.study import (
    PROVENANCE,
    CohortSpec,
    StudySettings,
    StudySpec,
    find_cohort,
    read_spec,
    read_study,
    same_spec,
    seen_of,
    times_of,
    write_spec,
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def study_file(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_glob_folder_and_bids_dataset_find_the_same_people(tmp_path: Path):
    names = [f"sub-{i:02d}_T1w.nii.gz" for i in range(3)]
    touch(*(tmp_path / "flat" / n for n in names))
    touch(*(tmp_path / "bids" / n[:6] / "anat" / n for n in names), tmp_path / "bids" / "dataset_description.json")
    touch(
        tmp_path / "bids" / "derivatives" / "x" / "sub-00_T1w.nii.gz", tmp_path / "bids/sub-00/anat/sub-00_T2w.nii.gz"
    )
    found = [
        [case.case_id for case in find_cohort("real", "real", CohortSpec(images=images), tmp_path).cases]
        for images in ("flat/*.nii.gz", "flat", "bids")
    ]
    assert found[0] == found[1] == found[2] == [n[: -len(".nii.gz")] for n in names]


def test_files_that_are_no_images_are_listed_not_lost(tmp_path: Path):
    touch(tmp_path / "a.nii.gz", tmp_path / "b.png", tmp_path / "c.json")
    cohort = find_cohort("x", "synthetic", CohortSpec(images="."), tmp_path)
    assert [case.case_id for case in cohort.cases] == ["a"]
    assert [r.case_id for r in cohort.rejected] == ["b.png"]
    assert "not an image" in cohort.rejected[0].reason


def test_equal_file_names_in_different_folders_stay_apart(tmp_path: Path):
    touch(*(tmp_path / f"sample{i}" / "t1.nii.gz" for i in range(3)))
    cohort = find_cohort("x", "synthetic", CohortSpec(images="*/t1.nii.gz"), tmp_path)
    assert len({case.case_id for case in cohort.cases}) == 3


def test_participants_join_by_name_and_mismatches_are_noted(tmp_path: Path):
    touch(*(tmp_path / f"sub-{n}_T1w.nii.gz" for n in "ABC"))
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-A\t30\tF\nB\t40\tM\nsub-Z\t50\tF\n")
    spec = CohortSpec(images="*.nii.gz", participants="participants.tsv")
    cohort = find_cohort("real", "real", spec, tmp_path)
    assert [(case.age, case.sex) for case in cohort.cases] == [(30, "F"), (40, "M"), (None, "")]
    assert any("1 images have no row" in note for note in cohort.notes)
    assert any("sub-Z" in note for note in cohort.notes)


def test_sessions_get_their_own_age(tmp_path: Path):
    touch(*(tmp_path / f"sub-A_ses-{n}_T1w.nii.gz" for n in "12"))
    (tmp_path / "p.tsv").write_text("participant_id\tsession\tage\nsub-A\tses-1\t30\nsub-A\tses-2\t32\n")
    cohort = find_cohort("real", "real", CohortSpec(images="*.nii.gz", participants="p.tsv"), tmp_path)
    assert [case.age for case in cohort.cases] == [30, 32]


def test_a_study_file_survives_the_round_trip(tmp_path: Path):
    touch(tmp_path / "real" / "a.nii.gz", tmp_path / "gen" / "b.nii.gz")
    spec = StudySpec(
        name='it\'s "α"',
        grid="half",
        real=CohortSpec(images="real"),
        synthetic={"α-WGAN": CohortSpec(images="gen", orientation="RAS")},
        settings=StudySettings(seed=3, qc_threshold=0.65),
    )
    write_spec(spec, tmp_path / "study.toml")
    assert read_spec(tmp_path / "study.toml") == spec
    study = read_study(tmp_path)
    assert [cohort.name for cohort in study.cohorts] == ["real", "α-WGAN"]
    assert study.settings.qc_threshold == 0.65


def test_all_problems_of_a_study_file_are_said_at_once(tmp_path: Path):
    path = study_file(
        tmp_path, 'name = "x"\ngrid = "quarter"\n[real]\nimages = "r"\nimagse = "r"\n[settings]\nseed = -1\n'
    )
    with pytest.raises(InputError) as caught:
        read_study(path)
    for word in ("grid", "real.imagse", "settings.seed"):
        assert word in caught.value.what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = ", "not valid TOML"),
        ('name = "x"\n[real]\nimages = "nothing/*.nii.gz"\n', "no image"),
        ('name = "x"\n[real]\nimages = "r"\nparticipants = "no.tsv"\n', "no such participants table"),
        ('name = "x"\n[real]\nimages = "r"\nvolumes = "no.csv"\n', "no such table"),
        ('name = "x"\n[real]\nimages = "r"\n[synthetic.real]\nimages = "r"\n', "cannot be called 'real'"),
    ],
)
def test_broken_studies_are_explained(tmp_path: Path, text: str, what: str):
    touch(tmp_path / "r" / "a.nii.gz")
    with pytest.raises(InputError, match=what):
        read_study(study_file(tmp_path, text))


def test_an_empty_synthetic_cohort_does_not_stop_the_others(tmp_path: Path):
    touch(tmp_path / "r" / "a.nii.gz", tmp_path / "g" / "b.nii.gz")
    (tmp_path / "empty").mkdir()
    text = 'name = "x"\n[real]\nimages = "r"\n[synthetic.A]\nimages = "empty"\n[synthetic.B]\nimages = "g"\n'
    study = read_study(study_file(tmp_path, text))
    assert [len(cohort.cases) for cohort in study.synthetic] == [0, 1]
    assert "No image" in study.synthetic[0].notes[0]


def test_volumes_made_by_the_product_carry_their_label(tmp_path: Path):
    touch(tmp_path / "c" / "a.nii.gz")
    (tmp_path / "c" / "provenance.json").write_text(json.dumps({"label": "control: blur 2 mm"}))
    cohort = find_cohort("Blurred", "synthetic", CohortSpec(images="c/*.nii.gz"), tmp_path)
    assert cohort.label == "Blurred (control: blur 2 mm)"


def test_writing_a_study_again_keeps_what_its_author_wrote(tmp_path):
    path = tmp_path / "study.toml"
    text = (
        '# our study\nname = "ours"  # short\ngrid = "half"\n\n[settings]\nsegmenter = "embedded"  # on purpose\n\n'
        '[real]\nimages = "real/*.nii.gz"\n\n[synthetic."HA-GAN"]\nimages = "hagan/*.nii.gz"\n'
    )
    path.write_text(text, encoding="utf-8")
    spec = read_spec(path)
    write_spec(spec, path)
    assert path.read_text(encoding="utf-8") == text
    more = {**spec.synthetic, "Ours, α": CohortSpec(images="ours")}
    write_spec(spec.model_copy(update={"synthetic": more}), path)
    added = path.read_text(encoding="utf-8")
    assert added.startswith(text) and read_spec(path).synthetic == more
    less = {"Ours, α": more["Ours, α"]}
    write_spec(spec.model_copy(update={"synthetic": less, "name": "theirs"}), path)
    assert read_spec(path).synthetic == less and "# on purpose" in path.read_text(encoding="utf-8")
    assert 'name = "theirs"' in path.read_text(encoding="utf-8")


WRITTEN = {
    "tables": '# ours\nname = "s"\n[real]\nimages = "r"\n[synthetic."A"] # first\nimages = "a" # here\n\n[synthetic.B]\nimages = "b"\n\n[settings]\nseed = 1 # fixed\n',
    "apart": 'name = "s"\n[synthetic.A]\nimages = "a"\n[real]\nimages = "r"\n[synthetic.B]\nimages = "b"\n[settings]\nseed = 1\n',
    "inline": 'name = "s"\nsynthetic = {A = {images = "a"}, B = {images = "b"}}\n[real]\nimages = "r"\n[settings]\nseed = 1\n',
    "dotted": 'name = "s"\nsynthetic.A.images = "a"\nsynthetic.B = {images = "b"}\nreal.images = "r"\nsettings.seed = 1\n',
}
CHANGES = {"renamed": ("A2:a", "B:b"), "last renamed": ("A:a", "B2:b"), "turned": ("B:b", "A:a"), "without": ("B:b",), "more": ("A:a", "B:b", "C:c"), "none": (), "names changed over": ("A:b", "B:a")}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_any_study_file_is_what_is_read_from_it(tmp_path, written, change):
    path = tmp_path / "study.toml"
    path.write_text(WRITTEN[written], encoding="utf-8")
    path.chmod(0o664)
    cohorts = {name: CohortSpec(images=images) for name, images in (item.split(":") for item in CHANGES[change])}
    settings = StudySettings(seed=1, n_boot=50)
    spec = read_spec(path).model_copy(
        update={"synthetic": cohorts, "training": CohortSpec(images="t"), "settings": settings}
    )
    write_spec(spec, path)
    assert same_spec(read_spec(path), spec)
    assert path.stat().st_mode & 0o777 == 0o664 and list(tmp_path.iterdir()) == [path]
    if written == "tables":
        text = path.read_text(encoding="utf-8")
        assert "# ours" in text and "# fixed" in text
        assert ("# here" in text) == any(item.endswith(":a") for item in CHANGES[change])  # also under a new name


def test_a_study_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = study_file(tmp_path, WRITTEN["tables"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_spec(read_spec(path).model_copy(update={"name": "other"}), path)
    assert path.read_text(encoding="utf-8") == WRITTEN["tables"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("change", ["new", "gone", "table", "folder", "label"])
def test_what_a_study_was_read_from_changes_with_its_files(tmp_path, change):
    for name in ("real/sub-1/anat", "alpha"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "real/sub-1/anat/sub-1_T1w.nii.gz").write_bytes(b"")
    (tmp_path / "real/dataset_description.json").write_text("{}", encoding="utf-8")
    (tmp_path / "alpha/a.nii.gz").write_bytes(b"")
    (tmp_path / "people.tsv").write_text("participant_id\nsub-1\n", encoding="utf-8")
    path = tmp_path / "study.toml"
    text = (
        'name = "s"\n[real]\nimages = "real"\nparticipants = "people.tsv"\n[synthetic.A]\nimages = "alpha/*.nii.gz"\n'
    )
    path.write_text(text, encoding="utf-8")
    seen = seen_of(read_study(path))
    assert times_of(seen) == seen
    for place, _ in seen:  # a clock that counts in coarse steps
        if os.path.exists(place):
            os.utime(place, ns=(0, 0))
    seen = times_of(seen)
    if change == "new":
        (tmp_path / "real/sub-2").mkdir()
    elif change == "gone":
        (tmp_path / "real/sub-1/anat/sub-1_T1w.nii.gz").unlink()
    elif change == "table":
        (tmp_path / "people.tsv").write_text("participant_id\nsub-2\n", encoding="utf-8")
    elif change == "folder":
        (tmp_path / "alpha/b.nii.gz").write_bytes(b"")
    else:
        (tmp_path / "alpha" / PROVENANCE).write_text("{}", encoding="utf-8")
    assert times_of(seen) != seen
