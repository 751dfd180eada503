"""Preprocessing of raw heads: reading, each step on a phantom with known truth, and the whole chain."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from core import preprocess
from core.errors import InputError
from core.volume import FULL, HALF, Volume, resample, save, template

SHAPE = (96, 128, 112)  # 2 mm voxels: 192 x 256 x 224 mm hold the head


def known_motion() -> NDArray[np.float64]:
    """World mm of the atlas to world mm of the phantom: 12° and -8° turns, scales, a shear, a shift."""
    a, b = np.deg2rad([12, -8])
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    motion = np.eye(4)
    motion[:3, :3] = turn_z @ turn_x @ np.array([[1.06, 0.03, 0], [0, 0.95, 0], [0, 0, 1.04]])
    motion[:3, 3] = (8, -12, 15)
    return motion


def brain_points() -> NDArray[np.float64]:
    index = np.argwhere(template(FULL).data[::6, ::6, ::6] > -1) * 6
    return np.c_[index @ FULL.affine[:3, :3].T + FULL.affine[:3, 3], np.ones(len(index))]


@pytest.fixture(scope="module")
def head() -> tuple[Volume, NDArray[np.bool_]]:
    """A template brain in CSF, skull and scalp, moved by `known_motion`, with noise; and its brain mask."""
    motion = known_motion()
    frame = np.diag([2.0, 2.0, 2.0, 1.0])
    centre = (motion @ np.append(brain_points()[:, :3].mean(axis=0), 1))[:3]
    frame[:3, 3] = centre - np.array(SHAPE) + 1
    atlas = template(FULL)
    moved = resample(replace(atlas, affine=motion @ atlas.affine), SHAPE, frame).data
    brain = moved > -0.9
    out = ndimage.distance_transform_edt(~ndimage.binary_closing(brain, iterations=3), sampling=2.0)
    data = np.where(brain, (moved + 1) * 300, 0)
    data[(out > 0) & (out <= 4)] = 60
    data[(out > 4) & (out <= 8)] = 20
    data[(out > 8) & (out <= 15)] = 450
    noise = np.random.default_rng(0).normal(0, 12, (2, *SHAPE))
    data = np.hypot(data + noise[0], noise[1])
    return Volume(np.rint(data).astype(np.float32), frame, "head"), brain


@pytest.fixture(scope="module")
def scans(head: tuple[Volume, NDArray[np.bool_]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same head as LIA NIfTI, NRRD and DICOM series."""
    folder, volume = tmp_path_factory.mktemp("scans"), head[0]
    to_lia = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt("LIA"))
    image = nib.Nifti1Image(volume.data.astype(np.int16), volume.affine).as_reoriented(to_lia)
    paths = {"nifti": folder / "a.nii.gz", "nrrd": folder / "b.nrrd", "dicom": folder / "series"}
    nib.save(image, paths["nifti"])
    stack = sitk.DICOMOrient(sitk.Cast(preprocess.to_sitk(volume), sitk.sitkInt16), "LPS")
    sitk.WriteImage(stack, paths["nrrd"])
    write_dicom(stack, paths["dicom"], "1.2.826.0.1.3680043.2.1125.7")
    return paths


def write_dicom(stack: sitk.Image, folder: Path, uid: str, patient: str = "") -> None:
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = stack.GetDirection()
    for i in range(stack.GetDepth()):
        cut = stack[:, :, i]
        place = stack.TransformIndexToPhysicalPoint((0, 0, i))
        tags = {
            "0008|0060": "MR",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|0013": str(i + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in place),
            "0020|0037": "\\".join(f"{direction[k]:.6f}" for k in (0, 3, 6, 1, 4, 7)),
            "0018|0050": str(stack.GetSpacing()[2]),
            **({"0010|0010": patient} if patient else {}),
        }
        for key, value in tags.items():
            cut.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid[-1]}_{i:03d}.dcm"))
        writer.Execute(cut)


# Reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nifti", "nrrd", "dicom"])
def test_every_format_gives_the_same_voxels_in_ras(
    kind: str, scans: dict[str, Path], head: tuple[Volume, NDArray[np.bool_]]
) -> None:
    volume = preprocess.read_scan(scans[kind])
    np.testing.assert_array_equal(volume.data, head[0].data)
    np.testing.assert_allclose(volume.affine, head[0].affine, atol=1e-3)
    assert volume.data.dtype == np.float32


def test_case_id_is_the_name_without_suffix(tmp_path: Path) -> None:
    assert preprocess.case_id_of(Path("x/sub-01_T1w.nii.gz")) == "sub-01_T1w"
    assert preprocess.case_id_of(Path("x/sub-01.NRRD")) == "sub-01"
    (tmp_path / "v1.2").mkdir()
    assert preprocess.case_id_of(tmp_path / "v1.2") == "v1.2"


def test_find_scans_takes_files_folders_and_series(scans: dict[str, Path], tmp_path: Path) -> None:
    folder = scans["nifti"].parent
    assert preprocess.find_scans([folder]) == [scans["nifti"], scans["nrrd"], scans["dicom"]]
    assert preprocess.find_scans([scans["dicom"], scans["dicom"]]) == [scans["dicom"]]
    (tmp_path / "sub-01").mkdir()
    shutil.copy(scans["nifti"], tmp_path / "sub-01" / "a.nii.gz")
    (tmp_path / "sub-01" / "a.json").write_text("{}")
    (tmp_path / ".DS_Store").write_text("")
    assert preprocess.find_scans([tmp_path]) == [tmp_path / "sub-01" / "a.nii.gz"]


def test_find_scans_drops_nothing_silently(scans: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scan was found"):
        preprocess.find_scans([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        preprocess.find_scans([tmp_path / "absent"])
    with pytest.raises(InputError, match="one DICOM file is not a scan"):
        preprocess.find_scans([next(scans["dicom"].iterdir())])
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"unknown kind of file '.png'"):
        preprocess.find_scans([tmp_path / "picture.png"])
    shutil.copy(scans["nifti"], tmp_path / "T1.nii.gz")
    listed = preprocess.find_scans([tmp_path])
    assert listed == [tmp_path / "T1.nii.gz", tmp_path / "picture.png"]
    with pytest.raises(InputError, match=r"unknown kind of file '.png'"):
        preprocess.read_scan(listed[1])


def test_unreadable_inputs_say_what_where_and_what_to_do(scans: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.nrrd").write_text("NRRD0004\n")
    cases = [
        (tmp_path / "absent.nii.gz", "no such file"),
        (tmp_path, "holds no DICOM files"),
        (tmp_path / "broken.nrrd", "cannot be read"),
    ]
    for path, what in cases:
        with pytest.raises(InputError, match=what) as caught:
            preprocess.read_scan(path)
        assert str(path) in caught.value.where
        assert caught.value.remedy


def test_too_few_or_too_thick_voxels_are_refused(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((80, 80, 30), dtype=np.float32)
    save(Volume(data, np.diag([2.0, 2, 5, 1])), tmp_path / "thick.nii.gz")
    with pytest.raises(InputError, match="not a 3D T1w head; expected at least 64 voxels"):
        preprocess.read_scan(tmp_path / "thick.nii.gz")
    data = np.random.default_rng(0).random((70, 70, 70), dtype=np.float32)
    save(Volume(data, np.diag([2.0, 2, 6, 1])), tmp_path / "gap.nii.gz")
    with pytest.raises(InputError, match="at most 5 mm"):
        preprocess.read_scan(tmp_path / "gap.nii.gz")


def test_several_series_are_listed_and_missing_slices_refused(scans: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(scans["dicom"], tmp_path / "gap")
    sorted((tmp_path / "gap").iterdir())[40].unlink()
    with pytest.raises(InputError, match="not evenly spaced"):
        preprocess.read_scan(tmp_path / "gap")
    shutil.copytree(scans["dicom"], tmp_path / "two")
    small = sitk.Image([64, 64, 3], sitk.sitkInt16) + 5
    write_dicom(small, tmp_path / "two", "1.2.826.0.1.3680043.2.1125.8")
    with pytest.raises(InputError, match=r"2 DICOM series: .*1125\.7 \(112 files.*1125\.8 \(3 files") as caught:
        preprocess.read_scan(tmp_path / "two")
    assert "alone in a folder" in caught.value.remedy


# Steps -----------------------------------------------------------------------------------------------


def test_denoising_brings_a_noisy_image_nearer_the_truth_whatever_the_threads() -> None:
    rng = np.random.default_rng(0)
    clean = ndimage.zoom(np.kron(rng.integers(2, 8, (4, 4, 4)), np.ones((10, 10, 10))), 2, order=0) * 50.0
    noisy = Volume((clean + rng.normal(0, 15, clean.shape)).astype(np.float32), np.eye(4))
    one, settings = preprocess.denoise(noisy, threads=1)
    two, _ = preprocess.denoise(noisy, threads=2)
    np.testing.assert_array_equal(one.data, two.data)
    assert settings["sigma"] == pytest.approx(15, rel=0.2)
    assert np.std(one.data - clean) < 0.6 * np.std(noisy.data - clean)
    assert abs(float((one.data - clean).mean())) < 1


def test_bias_correction_flattens_a_known_field() -> None:
    atlas = template(HALF)
    brain = ndimage.binary_erosion(atlas.data > -1, iterations=2)
    ramp = np.broadcast_to(np.linspace(-0.4, 0.4, HALF.shape[1], dtype=np.float32)[None, :, None], HALF.shape)
    scan = replace(atlas, data=(atlas.data + 1) * 100)
    biased = replace(scan, data=scan.data * np.exp(ramp))
    logs = [np.log(preprocess.correct_bias(v, threads=2)[0].data[brain]) for v in (scan, biased)]
    assert np.std(logs[1] - logs[0]) < 0.3 * np.std(ramp[brain])


def test_registration_recovers_a_known_affine(head: tuple[Volume, NDArray[np.bool_]]) -> None:
    volume, brain = head
    stripped = replace(volume, data=np.where(brain, volume.data, 0).astype(np.float32))
    found = preprocess.register(stripped, template(FULL))
    points = brain_points()
    miss = np.linalg.norm((points @ (found @ known_motion()).T - points)[:, :3], axis=1)
    assert miss.mean() < 0.5
    assert miss.max() < 1.5


def test_no_brain_is_an_input_error() -> None:
    noise = Volume(np.random.default_rng(0).random((64, 64, 64), dtype=np.float32) * 100, np.eye(4))
    with pytest.raises(InputError, match="brain was found") as caught:
        preprocess.extract_brain(noise, "noise.nii.gz", threads=2)
    assert caught.value.where == "noise.nii.gz"


# Template --------------------------------------------------------------------------------------------


def test_template_on_the_grid_is_used_as_it_is_and_others_are_centred(tmp_path: Path) -> None:
    atlas = template(FULL)
    save(atlas, tmp_path / "full.nii.gz")
    np.testing.assert_array_equal(preprocess.load_template(tmp_path / "full.nii.gz").data, atlas.data)
    assert preprocess.load_template(None) is atlas
    far = np.pad(atlas.data, 20, constant_values=-1) + 1
    save(Volume(far, np.diag([1.0, 1, 1, 1]) + 0.0), tmp_path / "other.nii.gz")
    other = preprocess.load_template(tmp_path / "other.nii.gz").data
    box = [(np.flatnonzero((other > -1).any(axis=axes))[[0, -1]]).mean() for axes in ((1, 2), (0, 2), (0, 1))]
    np.testing.assert_allclose(box, (np.array(FULL.shape) - 1) / 2, atol=1)


def test_template_with_a_skull_is_refused(tmp_path: Path) -> None:
    save(Volume(np.random.default_rng(0).random((70, 70, 70), dtype=np.float32), np.eye(4)), tmp_path / "t.nii.gz")
    with pytest.raises(InputError, match="not skull-stripped"):
        preprocess.load_template(tmp_path / "t.nii.gz")


# The whole chain -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(scans: dict[str, Path]) -> preprocess.Preprocessed:
    return preprocess.preprocess(scans["nifti"], FULL)


def test_output_is_an_atlas_space_brain(result: preprocess.Preprocessed) -> None:
    data = result.volume.data
    assert data.shape == FULL.shape
    assert data.dtype == np.float32
    assert (data.min(), data.max()) == (-1, 1)
    assert data[0, 0, 0] == -1
    assert (data == -1).mean() > 0.4
    assert result.volume.case_id == "a"
    np.testing.assert_array_equal(result.volume.affine, FULL.affine)


def test_output_lies_on_the_template(result: preprocess.Preprocessed) -> None:
    points = brain_points()
    miss = np.linalg.norm((points @ (result.affine @ known_motion()).T - points)[:, :3], axis=1)
    assert miss.mean() < 1.0
    assert np.corrcoef(result.volume.data.ravel(), template(FULL).data.ravel())[0, 1] > 0.9


def test_same_input_gives_the_same_output_and_half_is_its_block_mean(
    result: preprocess.Preprocessed, scans: dict[str, Path]
) -> None:
    again = preprocess.preprocess(scans["nifti"], HALF, threads=1)
    assert again.volume.data.shape == HALF.shape
    x, y, z = HALF.shape
    blocks = result.volume.data.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(again.volume.data, blocks, atol=1e-6)
    np.testing.assert_array_equal(again.affine, result.affine)
    assert again.brain_ml == result.brain_ml


def test_provenance_is_json_and_names_every_step(result: preprocess.Preprocessed) -> None:
    told = json.loads(json.dumps(result.provenance()))
    names = ["orientation", "denoising", "bias", "brain", "affine", "resampling", "intensity"]
    assert [step["name"] for step in told["steps"]] == names
    assert told["version"] == preprocess.VERSION
    assert told["brain_ml"] > 500
    assert any("LIA" in note for note in told["notes"])


def test_a_brain_cut_by_the_grid_is_noted() -> None:
    mask = np.ones((120, 120, 120), dtype=bool)
    shift = np.eye(4)
    shift[:3, 3] = (40, -60, -60)
    notes = preprocess.edge_notes(mask, np.ones(3), shift)
    assert any("outside the atlas grid" in note for note in notes)
    assert sum("edge of the scan" in note for note in notes) == 6
