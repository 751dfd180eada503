import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core import volume
from core.errors import InputError
from core.volume import FULL, HALF, PUBLISHED_SHAPE, Volume, load, load_on_grid, save, template


def write(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, affine), str(path))
    return path


def test_both_grids_cover_the_same_field_of_view():
    for corner in (0, 1):
        full = FULL.affine[:3, :3] @ (np.array(FULL.shape) * corner - 0.5) + FULL.affine[:3, 3]
        half = HALF.affine[:3, :3] @ (np.array(HALF.shape) * corner - 0.5) + HALF.affine[:3, 3]
        np.testing.assert_allclose(full, half)


def test_template_fits_its_grid_and_is_symmetric():
    brain = template(FULL).data
    found = np.argwhere(brain > -1)
    assert (found.min(axis=0) > 0).all()
    assert (found.max(axis=0) < np.array(FULL.shape) - 1).all()
    assert np.abs(brain - brain[::-1]).mean() < 0.01
    # 0.9³ of the ICBM152 brain: an average adult intracranial volume, in mL.
    assert 1300 < (brain > -1).sum() / 1000 < 1600


def test_saving_and_loading_gives_the_same_volume(tmp_path: Path, half_brain: Volume):
    save(half_brain, tmp_path / "a.nii.gz")
    read = load_on_grid(tmp_path / "a.nii.gz", HALF, rule="percentile")
    np.testing.assert_array_equal(read.data, half_brain.data)
    np.testing.assert_array_equal(read.affine, HALF.affine)
    assert read.case_id == "a"
    assert read.notes == ()


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PIR", "SRA"])
def test_axes_are_brought_to_ras(tmp_path: Path, half_brain: Volume, codes: str):
    image = nib.Nifti1Image(half_brain.data, half_brain.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(turn), tmp_path / "turned.nii.gz")
    read = load_on_grid(tmp_path / "turned.nii.gz", HALF, rule="percentile")
    np.testing.assert_array_equal(read.data, half_brain.data)
    assert f"from {codes}" in read.notes[0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d[:, ::-1], "RPS"),
        (lambda d: d[:, :, ::-1], "RAI"),
        (lambda d: d.transpose(2, 1, 0), "SAR"),
    ],
)
def test_anatomy_against_header_is_refused_and_the_advice_repairs_it(tmp_path, half_brain, change, code):
    path = write(tmp_path / "wrong.nii.gz", np.ascontiguousarray(change(half_brain.data)), HALF.affine)
    with pytest.raises(InputError, match=f'orientation = "{code}"'):
        load_on_grid(path, HALF, rule="percentile")
    repaired = load_on_grid(path, HALF, rule="percentile", orientation=code)
    np.testing.assert_array_equal(repaired.data, half_brain.data)


def test_a_generated_volume_without_shape_is_its_generator_s_failure_and_no_wrong_header(tmp_path, half_brain):
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.uniform(-1, 1, [n // 8 for n in HALF.shape]), np.ones((8, 8, 8)))
    data = (0.45 * half_brain.data[:, ::-1] + 0.55 * blocks).astype(np.float32)
    path = write(tmp_path / "blob.nii.gz", data, HALF.affine)
    (note,) = load_on_grid(path, HALF, rule="maximum").notes
    assert note.startswith("no brain in any orientation") and note.endswith("used as it is")
    with pytest.raises(InputError, match="does not follow the header"):  # a real scan must be a brain
        load_on_grid(path, HALF, rule="percentile")


def test_identity_affine_is_refused_until_the_user_says_the_axes(tmp_path: Path, half_brain: Volume):
    path = write(tmp_path / "eye.nii.gz", half_brain.data, np.eye(4))
    with pytest.raises(InputError, match="identity"):
        load_on_grid(path, HALF, rule="percentile")
    repaired = load_on_grid(path, HALF, rule="percentile", orientation="RAS")
    np.testing.assert_array_equal(repaired.data, half_brain.data)
    full = write(tmp_path / "eye1.nii.gz", template(FULL).data, np.eye(4))
    np.testing.assert_array_equal(load_on_grid(full, FULL, rule="maximum", orientation="RAS").data, template(FULL).data)


def test_broken_files_say_what_where_and_what_to_do(tmp_path: Path, half_brain: Volume):
    good = tmp_path / "good.nii.gz"
    save(half_brain, good)
    nan = half_brain.data.copy()
    nan[3, 4, 5] = np.nan
    cases = {
        "there is no such file": tmp_path / "absent.nii.gz",
        "empty": tmp_path / "empty.nii.gz",
        "not a readable NIfTI": tmp_path / "text.nii.gz",
        "cannot be read to the end": tmp_path / "truncated.nii.gz",
        "3D": write(tmp_path / "4d.nii.gz", np.zeros((4, 4, 4, 2), np.float32), np.eye(4)),
        "1 voxels are NaN or Inf": write(tmp_path / "nan.nii.gz", nan, HALF.affine),
        "all voxels are zero": write(tmp_path / "zero.nii.gz", np.zeros(HALF.shape, np.float32), HALF.affine),
        "all voxels equal 3": write(tmp_path / "flat.nii.gz", np.full(HALF.shape, 3, np.float32), HALF.affine),
        "not an atlas grid": write(tmp_path / "shape.nii.gz", half_brain.data[:-2], HALF.affine),
        r"intensities span \[-3": write(tmp_path / "range.nii.gz", half_brain.data * 3, HALF.affine),
    }
    cases["empty"].touch()
    cases["not a readable NIfTI"].write_bytes(gzip.compress(b"this is a letter"))
    cases["cannot be read to the end"].write_bytes(good.read_bytes()[:20000])
    for what, path in cases.items():
        with pytest.raises(InputError, match=what) as caught:
            load_on_grid(path, HALF, rule="percentile")
        assert path.name in caught.value.where
        assert caught.value.remedy


def test_absurd_header_is_refused_before_memory_is_taken(tmp_path: Path):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.float32)
    (tmp_path / "bomb.nii").write_bytes(header.binaryblock + b"\0" * 4 + b"\0" * 100)
    with pytest.raises(InputError, match="absurd"):
        load(tmp_path / "bomb.nii")


def test_published_rule_for_real_scans():
    rng = np.random.default_rng(0)
    data = np.zeros((20, 20, 20), np.float32)
    data[5:15, 5:15, 5:15] = rng.uniform(50, 200, (10, 10, 10))
    result = volume.normalise_percentile(data)
    high = np.quantile(data, 0.95)
    assert result.min() == -1
    assert result.max() == 1
    np.testing.assert_allclose(result[10, 10, 10], min(data[10, 10, 10], high) / high * 2 - 1, rtol=1e-6)
    assert (result[data == 0] == -1).all()


@given(arrays(np.float32, (6, 6, 6), elements=st.floats(1, 1000, width=32)), st.floats(0.5, 4))
@settings(max_examples=30, deadline=None)
def test_published_rules_do_not_depend_on_the_unit(data: np.ndarray, factor: float):
    for rule in (volume.normalise_percentile, volume.normalise_maximum):
        np.testing.assert_allclose(rule(data), rule(data * np.float32(factor)), atol=2e-5)


def test_volume_in_the_papers_shape_is_padded(tmp_path: Path):
    inner = template(FULL).data[3 : 3 + 138, 8 : 8 + 176, 3 : 3 + 138]
    assert inner.shape == PUBLISHED_SHAPE
    path = write(tmp_path / "sri.nii.gz", np.ascontiguousarray(inner), np.diag([1.0, 1, 1, 1]) + 0.0)
    read = load_on_grid(path, FULL, rule="percentile", orientation="RAS")
    np.testing.assert_array_equal(read.data[3:141, 8:184, 3:141], inner)
    assert (read.data[:3] == -1).all()
    assert "padded" in read.notes[-1]


def test_full_volume_joins_a_half_grid_study_but_not_the_reverse(tmp_path: Path, half_brain: Volume):
    save(template(FULL), tmp_path / "full.nii.gz")
    read = load_on_grid(tmp_path / "full.nii.gz", HALF, rule="percentile")
    assert read.data.shape == HALF.shape
    np.testing.assert_allclose(read.data.mean(), template(FULL).data.mean(), atol=1e-4)
    save(half_brain, tmp_path / "half.nii.gz")
    with pytest.raises(InputError, match="half"):
        load_on_grid(tmp_path / "half.nii.gz", FULL, rule="percentile")
