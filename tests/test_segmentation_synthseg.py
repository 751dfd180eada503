"""The SynthSeg engine against a program that speaks SynthSeg's interface."""

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core import anatomy, quality, segmentation, workflows
from core.errors import InputError, JobFailed, MissingAsset
from core.pools import Context
from core.segmentation import QC_GROUPS, Program, Segmentation, label_names
from core.segmentation import outside as outside_programs
from core.segmentation import synthseg as engine_module
from core.segmentation.synthseg import SynthSeg, find_program, installed_version, needed_memory
from core.segmentation.synthseg_output import _scores, _volumes, read_table, volume_names
from core.store import Store
from core.volume import FULL, HALF, Volume, load_labels, resample, save, template
from tests.stand_in_synthseg import calls, install, set_faults

PLENTY = 64 * 1024**3


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    return install(tmp_path / "freesurfer", label_names(), QC_GROUPS)


@pytest.fixture(autouse=True)
def enough_memory(monkeypatch):
    monkeypatch.setattr(engine_module, "available_memory", lambda: PLENTY)


@pytest.fixture
def brains(half_brain: Volume) -> list[Volume]:
    """Brains that differ in size: the stand-in counts what is bright."""
    cut = [half_brain.data.copy() for _ in range(3)]
    for index, data in enumerate(cut):
        data[: 10 * index] = -1
    return [Volume(data, HALF.affine, f"case.nii-{index}") for index, data in enumerate(cut)]


def run(program: Path | str, volumes: list[Volume], folder: Path, *, robust: bool = True, **program_settings):
    patience = program_settings.pop("patience", 60.0)
    engine = SynthSeg(Program(str(program), **program_settings), robust=robust, patience=patience)
    folder.mkdir(exist_ok=True)
    return list(engine(volumes, folder))


def option(call: dict, name: str) -> str:
    return call["argv"][call["argv"].index(name) + 1]


def test_a_batch_is_one_call_and_gives_labels_volumes_and_scores(installed: Path, brains, tmp_path: Path):
    results = run(installed, brains, tmp_path / "work", threads=3)
    assert [type(result) for result in results] == [Segmentation] * 3
    (call,) = calls(installed)
    assert {"--parc", "--robust", "--cpu"} <= set(call["argv"])
    assert option(call, "--threads") == call["threads"] == "3"
    for volume, result in zip(brains, results, strict=True):
        assert result.labels.case_id == volume.case_id
        assert result.labels.data.shape == HALF.shape
        np.testing.assert_allclose(result.labels.affine, HALF.affine)
        # the stand-in labels exactly what is bright, at 1 mm: on the grid that must be the same voxels again
        np.testing.assert_array_equal(result.labels.data > 0, volume.data + 1 > 0.2)
        assert tuple(result.volumes) == volume_names()
        assert result.volumes["total intracranial"] == pytest.approx(8 * (volume.data + 1 > 0.2).sum(), rel=1e-5)
        assert tuple(result.qc) == QC_GROUPS
        assert result.qc["general csf"] == 0.88
    sizes = [result.volumes["total intracranial"] for result in results]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


def test_what_it_returns_is_accepted_by_the_readers_of_imported_tables(installed: Path, brains, tmp_path: Path):
    result = run(installed, brains[:1], tmp_path / "work")[0]
    index = pd.Index(["a"], name="subject")
    assert anatomy.check_volumes(pd.DataFrame([result.volumes], index=index), "x").shape == (1, 101)
    assert quality.check_qc(pd.DataFrame([result.qc], index=index), "x").shape == (1, 8)


def test_full_grid_labels_come_back_voxel_by_voxel(installed: Path, tmp_path: Path):
    brain = template(FULL)
    volume = dataclasses.replace(brain, data=brain.data.copy())
    result = run(installed, [volume], tmp_path / "work")[0]
    np.testing.assert_array_equal(result.labels.data > 0, volume.data + 1 > 0.2)


def test_the_two_registered_engines_differ_by_robust_and_by_fingerprint(installed: Path, brains, tmp_path: Path):
    for index, name in enumerate(("synthseg", "synthseg-standard")):
        (tmp_path / name).mkdir()
        list(segmentation.build_batch(name, Program(str(installed)))(brains[:1], tmp_path / name))
        assert ("--robust" in calls(installed)[index]["argv"]) == (name == "synthseg")
        assert "--parc" in calls(installed)[index]["argv"]
        assert segmentation.in_batches(name)
    prints = {segmentation.fingerprint(name) for name in segmentation.SEGMENTERS}
    assert len(prints) == len(segmentation.SEGMENTERS)
    assert "robust" in segmentation.fingerprint("synthseg")


def test_an_engine_is_built_for_cases_or_for_batches():
    with pytest.raises(InputError, match="batches only"):
        segmentation.build("synthseg")
    with pytest.raises(InputError, match="case by case"):
        segmentation.build_batch("atlas", Program("x"))
    assert not segmentation.in_batches("atlas")
    for engine in segmentation.SEGMENTERS.values():
        assert (engine.load is None) != (engine.load_batch is None)


def test_graphics_cards_are_used_when_the_settings_say_so(installed: Path, brains, tmp_path: Path):
    run(installed, brains[:1], tmp_path / "work", device="cuda:1")
    (call,) = calls(installed)
    assert "--cpu" not in call["argv"]
    assert call["cuda"] == "1"


def test_freesurfer_needs_not_be_sourced(installed: Path, brains, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    link = tmp_path / "mri_synthseg"
    link.symlink_to(installed)
    for program in (installed, link):
        assert installed_version(Program(str(program))) == "freesurfer-linux-7.4.1-20230613-abc"
    run(installed, brains[:1], tmp_path / "work")
    assert calls(installed)[0]["home"] == str(installed.parent.parent)


def test_a_script_with_its_interpreter_is_a_program_too(installed: Path, brains, tmp_path: Path):
    script = installed.with_name("SynthSeg_predict.py")
    installed.rename(script)
    script.chmod(0o644)
    (script.parent.parent / "build-stamp.txt").unlink()
    command = f"{sys.executable} {script}"
    assert isinstance(run(command, brains[:1], tmp_path / "work")[0], Segmentation)
    before = installed_version(Program(command))
    assert before.startswith("SynthSeg_predict.py ")
    script.write_text(script.read_text(encoding="utf-8") + "\n# changed\n")
    assert installed_version(Program(command)) != before
    assert find_program(Program(str(script))) == ["python3", str(script)]


# What is missing is said once, with how to get it


@pytest.mark.parametrize("command", ["", "  ", "no-such-program", "/nowhere/mri_synthseg", f"{sys.executable} /no.py"])
def test_a_missing_program_is_explained(command: str):
    with pytest.raises(MissingAsset, match=r"FreeSurfer 7\.4.*SYNTHSCOPE_SYNTHSEG.*imported") as caught:
        segmentation.build_batch("synthseg", Program(command))
    assert "SYNTHSCOPE_SYNTHSEG" in str(caught.value)
    assert installed_version(Program(command)) == ""


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"old": True}, "unrecognized arguments: --robust.*too old"), ({"import": True}, "No module named 'tensorflow")],
)
def test_a_program_that_cannot_work_is_called_once(installed: Path, brains, tmp_path: Path, fault, message):
    set_faults(installed, {0: fault})
    with pytest.raises(MissingAsset, match=message):
        run(installed, brains, tmp_path / "work")
    assert len(calls(installed)) == 1


def test_a_program_that_cannot_be_executed_is_explained(installed: Path, brains, tmp_path: Path):
    installed.chmod(0o644)
    with pytest.raises(MissingAsset, match="FreeSurfer"):
        run(installed, brains, tmp_path / "work")


def test_memory_is_estimated_before_the_program_starts(installed: Path, brains, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(engine_module, "available_memory", lambda: 3_100_000_000)
    with pytest.raises(JobFailed, match=r"needs about 7\.\d GB of memory, 3\.1 GB are free.*import the tables"):
        run(installed, brains, tmp_path / "work")
    assert calls(installed) == []


def test_memory_follows_the_field_of_view_and_not_the_voxels(brains):
    full = Volume(np.zeros(FULL.shape, np.float32), FULL.affine)
    assert needed_memory(full) == needed_memory(brains[0])  # SynthSeg works at 1 mm whatever it is given
    tiny = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    small = Volume(np.zeros((128, 128, 128), np.float32), np.eye(4))
    wide = Volume(np.zeros((256, 128, 128), np.float32), np.eye(4))
    assert needed_memory(tiny) == needed_memory(small) < needed_memory(wide)
    assert 0 < outside_programs.available_memory() <= psutil.virtual_memory().total


# Scans that fail


@pytest.mark.parametrize("occurred", ["occured", "occurred"])  # FreeSurfer's and the repository's spelling
def test_a_scan_that_fails_is_tried_alone_and_then_explained(brains, tmp_path: Path, occurred: str):
    program = install(tmp_path / "fs", label_names(), QC_GROUPS, occurred=occurred)
    set_faults(program, {0: {"fail": ["scan-0001"]}, 1: {"fail": ["scan-0000"]}})
    good, bad, last = run(program, brains, tmp_path / "work")
    assert isinstance(good, Segmentation)
    assert isinstance(last, Segmentation)
    assert isinstance(bad, InputError)
    assert bad.where == brains[1].case_id
    assert "ValueError: scan-0000 is bad" in str(bad)
    assert len(calls(program)) == 2


def test_a_retry_that_works_is_a_result(installed: Path, brains, tmp_path: Path):
    set_faults(installed, {0: {"fail": ["scan-0001"]}})
    again = run(installed, brains, tmp_path / "work")
    set_faults(installed, {})
    direct = run(installed, brains, tmp_path / "direct")
    assert [result.volumes for result in again] == [result.volumes for result in direct]
    assert len(calls(installed)) == 3


@pytest.mark.parametrize("fault", [{"crash_at": 1}, {"exit_at": 1}, {"crash_at": 1, "signal": 9}])
def test_a_crash_halfway_costs_only_what_was_not_written(installed: Path, brains, tmp_path: Path, fault):
    set_faults(installed, {0: fault})
    results = run(installed, brains, tmp_path / "work")
    assert all(isinstance(result, Segmentation) for result in results)
    assert len(calls(installed)) == 3  # the batch, and the two scans it did not reach


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"exit_at": 0}, "exit status 1: out of luck"),
        ({"crash_at": 0, "signal": 9}, "memory ran out"),
        ({"crash_at": 0, "signal": 11}, "exit status -11: predicting"),
    ],
)
def test_a_program_that_fails_on_every_scan_is_not_tried_for_ever(
    installed: Path, brains, tmp_path: Path, fault, message
):
    set_faults(installed, dict.fromkeys(range(20), fault))
    results = run(installed, [*brains, *brains], tmp_path / "work")
    assert len(results) == 6
    assert all(isinstance(result, InputError) for result in results)
    assert message in str(results[0])
    assert message in str(results[-1])
    assert len(calls(installed)) == 1 + engine_module.HOPELESS


def test_a_program_that_hangs_is_stopped_with_its_children(installed: Path, brains, tmp_path: Path):
    set_faults(installed, {0: {"hang_at": 1}})
    results = run(installed, brains[:2], tmp_path / "work", patience=12.0)
    assert all(isinstance(result, Segmentation) for result in results)
    assert len(calls(installed)) == 2
    child = int((installed.parent / "child").read_text(encoding="utf-8"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_scan_that_made_the_program_hang_says_so(brains, tmp_path: Path):
    batch = engine_module.Batch(outside_programs.Run(None, "SynthSeg 2.0", 1800.0), tmp_path, 1800.0)
    assert "no progress for 30 minutes" in str(batch.result(0, brains[0]))


def test_volumes_that_cannot_be_segmented_never_reach_the_program(installed: Path, brains, tmp_path: Path):
    empty = Volume(np.full(HALF.shape, -1, np.float32), HALF.affine, "empty")
    holes = dataclasses.replace(brains[0], data=np.where(brains[0].data > 0, np.nan, brains[0].data), case_id="holes")
    results = run(installed, [empty, brains[0], holes], tmp_path / "work")
    assert [type(result) for result in results] == [InputError, Segmentation, InputError]
    assert results[0].where == "empty"
    assert len(list((tmp_path / "work" / "batch" / "scans").iterdir())) == 1
    assert run(installed, [empty], tmp_path / "none")[0].where == "empty"
    assert len(calls(installed)) == 1


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """What the program leaves of one good scan."""
    root = tmp_path_factory.mktemp("healthy")
    brain = template(HALF)
    engine = SynthSeg(Program(str(install(root / "fs", label_names(), QC_GROUPS))), robust=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "available_memory", lambda: PLENTY)
        assert isinstance(next(engine([Volume(brain.data, HALF.affine, "case")], root)), Segmentation)
    return root / "batch" / "output"


def set_cell(path: Path, column: str, cell: str) -> None:
    rows = list(csv.reader(path.open(newline="")))
    rows[1][rows[0].index(column)] = cell
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def replace_text(path: Path, old: str, new: bytes) -> None:
    assert old.encode() in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old.encode(), new))


def strange_labels(path: Path) -> None:
    labels = load_labels(path)
    save(
        dataclasses.replace(labels, data=np.where(labels.data == labels.data.max(), 77, labels.data).astype(np.int32)),
        path,
    )


def elsewhere(path: Path) -> None:
    labels, shift = load_labels(path), np.eye(4)
    shift[:3, 3] = 500
    save(dataclasses.replace(labels, affine=shift @ labels.affine), path)


MALFORMED = {
    "nan": (lambda o: set_cell(o / "volumes.csv", "left thalamus", "nan"), "left thalamus = 'nan'"),
    "negative": (lambda o: set_cell(o / "volumes.csv", "left thalamus", "-3.0"), "left thalamus = '-3.0'"),
    "blank": (lambda o: set_cell(o / "volumes.csv", "csf", ""), "csf = ''"),
    "underscore": (lambda o: set_cell(o / "volumes.csv", "csf", "1_000"), "csf = '1_000'"),
    "wrong structure": (lambda o: set_cell(o / "volumes.csv", "csf", "12.5"), "the structures add up to"),
    "wrong parcel": (lambda o: set_cell(o / "volumes.csv", "ctx-lh-insula", "12.5"), "the cortical parcels add up to"),
    "no brain": (lambda o: set_cell(o / "volumes.csv", "total intracranial", "0.0"), "no brain was found"),
    "nan score": (lambda o: set_cell(o / "qc.csv", "thalamus", "nan"), "thalamus = 'nan'"),
    "score above 1": (lambda o: set_cell(o / "qc.csv", "thalamus", "1.0001"), "thalamus = '1.0001'"),
    "lost decimals": (lambda o: set_cell(o / "qc.csv", "thalamus", "0.88"), "thalamus = '0.88'"),
    "no row": (lambda o: replace_text(o / "volumes.csv", "scan-0000", b"scan-0007"), "volumes.csv has no row"),
    "two rows": (
        lambda o: (o / "qc.csv").write_bytes(b"".join((x := (o / "qc.csv").read_bytes().splitlines(True)) + x[1:])),
        "qc.csv has two rows",
    ),
    "lost cell": (lambda o: replace_text(o / "qc.csv", "0.8900,", b""), "qc.csv has a damaged row"),
    "other name": (
        lambda o: replace_text(o / "volumes.csv", "left thalamus", b"left thalamus proper"),
        "it lacks left thalamus; unknown are left thalamus proper",
    ),
    "no parcels": (lambda o: replace_text(o / "volumes.csv", ",ctx-rh-insula", b""), "it lacks ctx-rh-insula"),
    "doubled column": (lambda o: replace_text(o / "qc.csv", "thalamus", b"brainstem"), "it lacks thalamus"),
    "no subject": (lambda o: replace_text(o / "qc.csv", "subject", b"total"), "its header is damaged"),
    "no text": (lambda o: replace_text(o / "qc.csv", "general csf", b"\xff"), "qc.csv is damaged"),
    "empty table": (lambda o: (o / "qc.csv").write_bytes(b""), "it lacks general white matter"),
    "no table": (lambda o: (o / "qc.csv").unlink(), "it wrote no qc.csv"),
    "cut row": (lambda o: (o / "qc.csv").write_bytes((o / "qc.csv").read_bytes()[:-3]), "qc.csv has no row"),
    "no labels": (lambda o: (o / "labels/scan-0000_synthseg.nii.gz").unlink(), "it wrote no label map"),
    "cut labels": (
        lambda o: os.truncate(o / "labels/scan-0000_synthseg.nii.gz", 2000),
        "the data cannot be read to the end",
    ),
    "strange labels": (lambda o: strange_labels(o / "labels/scan-0000_synthseg.nii.gz"), "does not use: 77"),
    "labels elsewhere": (lambda o: elsewhere(o / "labels/scan-0000_synthseg.nii.gz"), "empty on the study's grid"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_output_is_an_error_of_the_scan(healthy: Path, half_brain: Volume, tmp_path: Path, name: str):
    output = tmp_path / "output"
    shutil.copytree(healthy, output)
    batch = engine_module.Batch(outside_programs.Run(0, "", 1.0), output, 60.0)
    volume = dataclasses.replace(half_brain, case_id="case")
    assert isinstance(batch.result(0, volume), Segmentation)
    damage, message = MALFORMED[name]
    damage(output)
    result = batch.result(0, volume)
    assert isinstance(result, InputError)
    assert message in str(result)
    assert "case" in result.where


# Numbers of a broken table


def row_of(path: Path, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Write both tables with two scans as SynthSeg does; return the numbers of the second."""
    rng = np.random.default_rng(seed)
    names, kept = label_names(), {}
    with (path / "volumes.csv").open("w", newline="") as vol, (path / "qc.csv").open("w", newline="") as qc:
        csv.writer(vol).writerow(["subject", *volume_names()])
        csv.writer(qc).writerow(["subject", *QC_GROUPS])
        for subject in ("scan-0000", "scan-0001"):
            sizes = {name: rng.uniform(300, 90000) for label, name in names.items() if label < 1000}
            parcels = {name: rng.uniform(300, 9000) for label, name in names.items() if label > 1000}
            scale = (sizes[names[3]] + sizes[names[42]]) / sum(parcels.values())
            row = {"total intracranial": sum(sizes.values()), **sizes, **{k: v * scale for k, v in parcels.items()}}
            row = {name: round(value, 3) for name, value in row.items()}
            scores = {name: round(float(rng.uniform(0.3, 0.99)), 4) for name in QC_GROUPS}
            csv.writer(vol).writerow([subject, *map(str, row.values())])
            csv.writer(qc).writerow([subject, *(f"{score:.4f}" for score in scores.values())])
            kept = (row, scores)
    return kept


def damaged(data: bytes, how: str, place: int, length: int, byte: int) -> bytes:
    place %= max(1, len(data))
    end = min(len(data), place + length)
    if how == "cut":
        return data[:place]
    if how == "hole":
        return data[:place] + data[end:]
    if how == "repeat":
        return data[:end] + data[place:]
    if how == "insert":
        return data[:place] + bytes([byte]) * length + data[place:]
    lines = data.splitlines(keepends=True)
    i = place % len(lines)
    return b"".join(lines[:i] + lines[i + 1 :]) if how == "lose line" else b"".join([*lines, lines[i]])


@hypothesis_settings(max_examples=400, deadline=None)
@given(
    table=st.sampled_from(["volumes.csv", "qc.csv"]),
    how=st.sampled_from(["cut", "hole", "repeat", "insert", "lose line", "double line"]),
    place=st.integers(0, 10**5),
    length=st.integers(1, 40),
    byte=st.integers(0, 255),
    seed=st.integers(0, 50),
)
def test_a_broken_table_never_yields_a_number_that_looks_right(tmp_path_factory, table, how, place, length, byte, seed):
    folder = tmp_path_factory.mktemp("fuzz")
    volumes, scores = row_of(folder, seed)
    path = folder / table
    path.write_bytes(damaged(path.read_bytes(), how, place, length, byte))
    try:
        read_volumes = _volumes(read_table(folder / "volumes.csv", volume_names()).row("scan-0001"))
        read_scores = _scores(read_table(folder / "qc.csv", QC_GROUPS).row("scan-0001"))
    except InputError:
        return
    # SynthSeg's own sums tell a wrong volume from its rounding only above a few mm³
    limit = 2e-5 * volumes["total intracranial"]
    assert all(abs(read_volumes[name] - volumes[name]) <= limit for name in volumes)
    assert read_scores == scores


def test_undamaged_tables_are_read_to_the_last_digit(tmp_path: Path):
    volumes, scores = row_of(tmp_path, 1)
    assert _volumes(read_table(tmp_path / "volumes.csv", volume_names()).row("scan-0001")) == volumes
    assert _scores(read_table(tmp_path / "qc.csv", QC_GROUPS).row("scan-0001")) == scores


@pytest.mark.parametrize("form", ["scan", "folder", "list"])
def test_tables_of_every_form_of_call_can_be_imported(installed: Path, brains, tmp_path: Path, form: str):
    """A scan's own tables have an empty first header cell; the readers of imported tables take both."""
    scans = tmp_path / "scans"
    scans.mkdir()
    save(Volume(brains[0].data + 1, HALF.affine), scans / "sub-1.nii.gz")
    out = {name: tmp_path / f"{name}.csv" for name in ("vol", "qc")}
    if form == "list":
        lists = {"i": scans / "sub-1.nii.gz", "o": tmp_path / "sub-1_synthseg.nii.gz", **out}
        for name, target in lists.items():
            (tmp_path / f"{name}.txt").write_text(f"{target}\n")
        arguments = [part for name in lists for part in (f"--{name}", tmp_path / f"{name}.txt")]
    else:
        source = scans if form == "folder" else scans / "sub-1.nii.gz"
        arguments = ["--i", source, "--o", tmp_path / "seg", "--vol", out["vol"], "--qc", out["qc"]]
    subprocess.run([installed, *map(str, arguments), "--parc", "--robust"], check=True, capture_output=True)
    assert out["vol"].read_text(encoding="utf-8").startswith("," if form == "list" else "subject,")
    volumes, scores = anatomy.read_volumes(out["vol"]), quality.read_qc(out["qc"])
    assert volumes.index.tolist() == scores.index.tolist() == ["sub-1"]
    assert _volumes(read_table(out["vol"], volume_names()).row("sub-1")) == volumes.loc["sub-1"].to_dict()


# In the workflow


@pytest.fixture
def with_synthseg(context: Context, installed: Path) -> Context:
    return Context(dataclasses.replace(context.settings, synthseg=str(installed)), context.pool)


def test_a_folder_is_segmented_once(with_synthseg: Context, installed: Path, write_brains, tmp_path: Path):
    write_brains(tmp_path / "in", 3)
    summary = workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    assert summary["failed"] == 0
    volumes = anatomy.read_volumes(tmp_path / "out" / "volumes.csv")
    assert volumes.index.tolist() == ["brain-00", "brain-01", "brain-02"]
    assert load_labels(tmp_path / "out" / "brain-02_dseg.nii.gz").data.any()
    assert len(calls(installed)) == 1
    again = workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "again"), "synthseg")
    assert again["failed"] == 0
    assert len(calls(installed)) == 1
    assert (tmp_path / "again" / "volumes.csv").read_bytes() == (tmp_path / "out" / "volumes.csv").read_bytes()
    scratch = [p for p in (with_synthseg.settings.workspace / "scratch").rglob("*") if p.is_file()]
    assert scratch == []


def test_only_what_is_missing_goes_into_batches(with_synthseg, installed: Path, write_brains, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "BATCH", 2)
    write_brains(tmp_path / "in", 2)
    workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    write_brains(tmp_path / "in", 3, seed=1, prefix="more")
    workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    assert len(calls(installed)) == 3
    assert len(anatomy.read_volumes(tmp_path / "out" / "volumes.csv")) == 5


def test_a_failed_case_is_a_row_with_its_error(with_synthseg, installed: Path, write_brains, tmp_path: Path):
    set_faults(installed, {0: {"fail": ["scan-0001"]}, 1: {"fail": ["scan-0000"]}})
    write_brains(tmp_path / "in", 3)
    summary = workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    assert summary["failed"] == 1
    assert summary["failures"][0]["case"] == "brain-01"
    assert "ValueError" in summary["failures"][0]["error"]
    assert anatomy.read_volumes(tmp_path / "out" / "volumes.csv").index.tolist() == ["brain-00", "brain-02"]
    repaired = workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    assert repaired["failed"] == 0  # failures are not remembered


def test_stored_results_need_no_program_and_a_new_version_runs_again(with_synthseg, installed, write_brains, tmp_path):
    write_brains(tmp_path / "in", 1)
    arguments = (str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    workflows.segment_folder(with_synthseg, *arguments)
    without = Context(dataclasses.replace(with_synthseg.settings, synthseg=""), with_synthseg.pool)
    assert workflows.segment_folder(without, *arguments)["failed"] == 0
    (installed.parent.parent / "build-stamp.txt").write_text("freesurfer-linux-8.0.0\n")
    workflows.segment_folder(with_synthseg, *arguments)
    assert len(calls(installed)) == 2
    with pytest.raises(MissingAsset, match="Install FreeSurfer"):
        workflows.segment_folder(without, *arguments[:2], "synthseg-standard")


def test_a_killed_run_leaves_neither_files_nor_programs(tmp_path: Path):
    folder = tmp_path / "scratch"
    (folder / "batch").mkdir(parents=True)
    (folder / "batch" / "scan.nii.gz").write_bytes(b"x")
    code = "import time; time.sleep(600)"
    left = subprocess.Popen([sys.executable, "-c", code, "--i", str(folder / "batch")])
    other = subprocess.Popen([sys.executable, "-c", code, "--i", f"{folder}-2/batch"])
    try:
        segmentation.clear_scratch(folder)
        assert left.wait(timeout=10) != 0
        assert other.poll() is None
        assert list(folder.iterdir()) == []
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_the_settings_find_the_program(monkeypatch, installed: Path, tmp_path: Path):
    from core.settings import child_environment, from_environment

    for name in ("SYNTHSCOPE_SYNTHSEG", "FREESURFER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert from_environment().synthseg == ""
    monkeypatch.setenv("FREESURFER_HOME", str(installed.parent.parent))
    assert from_environment().synthseg == str(installed)
    other = install(tmp_path / "other", label_names(), QC_GROUPS)
    monkeypatch.setenv("PATH", str(other.parent) + os.pathsep + str(tmp_path))
    assert from_environment().synthseg == str(other)
    monkeypatch.setenv("SYNTHSCOPE_SYNTHSEG", "python x/SynthSeg_predict.py")
    assert child_environment(from_environment())["SYNTHSCOPE_SYNTHSEG"] == "python x/SynthSeg_predict.py"


def test_labels_at_1_mm_are_brought_to_the_half_grid_by_their_place(installed: Path, tmp_path: Path):
    """The nearest 1 mm label of each 2 mm voxel lies inside that voxel."""
    labels = np.zeros(FULL.shape, np.int32)
    labels[40:60, 80:100, 60:80] = 17
    on_half = resample(Volume(labels, FULL.affine), HALF.shape, HALF.affine, order=0).data
    assert on_half[20:30, 40:50, 30:40].min() == 17
    assert (on_half > 0).sum() == 10**3


def test_rows_are_stored_with_the_version_of_the_program(with_synthseg, write_brains, tmp_path: Path):
    write_brains(tmp_path / "in", 1)
    workflows.segment_folder(with_synthseg, str(tmp_path / "in"), str(tmp_path / "out"), "synthseg")
    store = Store(with_synthseg.settings.workspace)
    texts = [path.read_text(encoding="utf-8") for path in store.root.glob("artefacts/*/*/*.provenance")]
    assert any("freesurfer-linux-7.4.1" in text for text in texts)
