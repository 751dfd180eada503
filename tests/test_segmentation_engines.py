"""The engines that need no program: labels near the truth, volumes that follow anatomy, QC that falls when images get worse."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core import segmentation, simulate
from core.errors import InputError, MissingAsset
from core.segmentation import embedded, embedded_qc
from core.segmentation.network import FEATURES
from core.simulate.warp import atlas
from core.volume import FULL, HALF, Volume

SEED = 77


@pytest.fixture(scope="module")
def case() -> simulate.Simulated:
    return simulate.simulate_case(HALF, SEED, 0)


@pytest.fixture(scope="module", params=["atlas", "embedded"])
def engine(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def found(case, engine) -> segmentation.Segmentation:
    return segmentation.build(engine)(case.volume)


def dice(found: np.ndarray, true: np.ndarray, name: str) -> float:
    ids = atlas().names[name]
    a, b = np.isin(found, ids), np.isin(true, ids)
    return 2 * np.sum(a & b) / (a.sum() + b.sum())


def test_labels_are_near_the_truth(case, found):
    assert found.labels.data.shape == HALF.shape
    assert found.labels.data.dtype == np.int32
    assert found.labels.case_id == case.volume.case_id
    for name, least in (
        ("left thalamus", 0.86), ("right hippocampus", 0.8), ("left putamen", 0.78), ("brain-stem", 0.86),
        ("right lateral ventricle", 0.7), ("left cerebral white matter", 0.9), ("left cerebral cortex", 0.85),
    ):  # fmt: skip
        assert dice(found.labels.data, case.labels, name) > least, name


def test_columns_are_those_of_synthseg_and_add_up(case, found):
    assert list(found.volumes) == list(case.volumes)
    assert list(found.qc) == list(segmentation.QC_GROUPS)
    total = sum(v for k, v in found.volumes.items() if k != "total intracranial" and not k.startswith("ctx-"))
    assert total == pytest.approx(found.volumes["total intracranial"])
    assert found.volumes["total intracranial"] == pytest.approx(case.volumes["total intracranial"], rel=0.04)


def test_the_same_volume_gives_the_same_result(case, found, engine):
    again = segmentation.build(engine)(case.volume)
    assert np.array_equal(again.labels.data, found.labels.data)
    assert again.volumes == found.volumes
    assert again.qc == found.qc


def test_a_smaller_hippocampus_is_measured_smaller(case, found, engine):
    shrunken = simulate.simulate_case(HALF, SEED, 0, defect="shrunken-hippocampus", strength=0.3)
    after = segmentation.build(engine)(shrunken.volume)
    for side in ("left", "right"):
        change = after.volumes[f"{side} hippocampus"] / found.volumes[f"{side} hippocampus"] - 1
        assert -0.4 < change < -0.1  # the embedded engine measures about half of a change: docs/segmenter.md
    assert after.volumes["brain-stem"] == pytest.approx(found.volumes["brain-stem"], rel=0.03)


def test_scores_are_high_for_a_good_image_and_fall_with_blur_and_noise(found, engine):
    assert min(found.qc.values()) > 0.7
    for defect, strengths in (("blur", (3.0, 6.0)), ("noise", (0.8,))):
        means = [np.mean(list(found.qc.values()))]
        for strength in strengths:
            worse = simulate.simulate_case(HALF, SEED, 0, defect=defect, strength=strength)
            means.append(np.mean(list(segmentation.build(engine)(worse.volume).qc.values())))
        assert np.all(np.diff(means) < -0.02), (defect, means)


def test_a_missing_structure_lowers_its_score(case, found, engine):
    rng = np.random.default_rng(0)
    image = case.volume.data.copy()
    gone = np.isin(case.labels, (10, 49))
    image[gone] = rng.choice(image[np.isin(case.labels, (2, 41))], gone.sum())
    qc = segmentation.build(engine)(dataclasses.replace(case.volume, data=image)).qc
    assert qc["thalamus"] < found.qc["thalamus"] - 0.1
    assert qc["cerebellum"] == pytest.approx(found.qc["cerebellum"], abs=0.05)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (np.full(HALF.shape, -1, np.float32), "empty or constant"),
        (np.zeros((10, 10, 10), np.float32), "not an atlas grid"),
        (np.full(HALF.shape, np.nan, np.float32), "NaN"),
    ],
)
def test_what_cannot_be_segmented_is_refused(data, hint, engine):
    with pytest.raises(InputError, match=hint):
        segmentation.build(engine)(Volume(data, HALF.affine, "bad"))


def test_a_volume_off_the_grid_is_refused(case, engine):
    with pytest.raises(InputError, match="not an atlas grid"):
        segmentation.build(engine)(dataclasses.replace(case.volume, affine=np.eye(4)))


def test_engines_are_listed():
    with pytest.raises(InputError, match="atlas"):
        segmentation.build("oracle")
    assert segmentation.fingerprint("atlas").startswith("atlas-")
    for entry in segmentation.SEGMENTERS.values():
        assert entry.label
        assert entry.card.endswith(".")
        assert (entry.load is None) != (entry.load_batch is None)
        assert entry.load is None or callable(entry.load())
        assert (entry.load is None) == bool(entry.needs)  # programs run on batches


def test_both_grids_give_nearly_the_same_volumes():
    """The embedded engine has one network for both; counting voxels of 2 mm would move small structures by tens of %."""
    sizes = {
        grid: segmentation.build("embedded")(simulate.simulate_case(grid, SEED, 0).volume).volumes
        for grid in (FULL, HALF)
    }
    for name in ("left thalamus", "right hippocampus", "left putamen", "brain-stem", "left cerebral white matter"):
        assert sizes[FULL][name] == pytest.approx(sizes[HALF][name], rel=0.08), name


def test_weights_that_are_absent_or_foreign_are_refused(case, tmp_path):
    with pytest.raises(MissingAsset, match="not installed"):
        embedded.segment(case.volume, weights=tmp_path)
    for number, name in enumerate((embedded.WEIGHTS, embedded_qc.WEIGHTS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        for file in (embedded.WEIGHTS, embedded_qc.WEIGHTS):
            (folder / file).symlink_to(embedded.ASSETS / file)
        (folder / name).unlink()
        save_file({"other": torch.zeros(2)}, folder / name)
        with pytest.raises(InputError, match="another network"):
            embedded.segment(case.volume, weights=folder)


def test_features_are_means_over_the_voxels_of_each_group(case):
    net = embedded.network(embedded.ASSETS)
    _, sums = embedded.infer(net, case.volume.data, HALF)
    assert sums.sizes.sum() == len(net.region)
    with torch.inference_mode():
        coarse, _ = net.features(torch.from_numpy(case.volume.data)[None, None])
    everywhere = coarse[0].flatten(1)[:, net.region].double().sum(1).numpy()
    assert np.allclose(sums.features[0].sum(0), everywhere, rtol=1e-3)
    absent = dataclasses.replace(sums, features=np.zeros_like(sums.features), sizes=np.zeros_like(sums.sizes))
    assert not embedded._features(absent).any()


def test_measures_tell_perfect_labels_from_shifted_ones(case):
    expected = dict.fromkeys(segmentation.QC_GROUPS, 0.9)
    features = np.ones((8, 2 * FEATURES), np.float32)
    good = embedded_qc.measure(case.volume.data, case.labels, expected, features)
    shifted = embedded_qc.measure(case.volume.data, np.roll(case.labels, 2, axis=1), expected, features)
    assert good.shape == (8, embedded_qc.N_FEATURES)
    for name in ("fit", "favoured"):
        column = embedded_qc.OWN.index(name)
        assert good[:, column].mean() > shifted[:, column].mean() + 0.05, name
    nothing = embedded_qc.measure(case.volume.data, np.zeros_like(case.labels), expected, features)
    assert np.isfinite(nothing).all()
