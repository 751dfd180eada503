"""Simulated people: reproducible, invertible, with volumes that are true; every defect does what it says."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from core import simulate
from core.errors import InputError
from core.simulate import deformation
from core.simulate.warp import LEAST_JACOBIAN, atlas, make_warp
from core.volume import FULL, HALF

SEED = 11


@pytest.fixture(scope="module")
def people() -> list[simulate.Simulated]:
    return list(simulate.simulate(HALF, 6, SEED))


def with_defect(defect: str, strength: float | None = None, n: int = 6) -> list[simulate.Simulated]:
    return list(simulate.simulate(HALF, n, SEED, defect=defect, strength=strength))


def changes(cases, people) -> dict[str, np.ndarray]:
    """Relative change of every volume, person by person."""
    return {
        name: np.array([c.volumes[name] / p.volumes[name] - 1 for c, p in zip(cases, people, strict=True)])
        for name in people[0].volumes
    }


def test_a_case_depends_on_seed_and_index_alone(people):
    again = simulate.simulate_case(HALF, SEED, 4)
    assert np.array_equal(again.volume.data, people[4].volume.data)
    assert np.array_equal(again.labels, people[4].labels)
    assert again.volumes == people[4].volumes
    assert again.provenance() == people[4].provenance()


def test_other_seeds_and_indices_give_other_people(people):
    other = simulate.simulate_case(HALF, SEED + 1, 0)
    for case in (other, people[1]):
        assert case.recipe != people[0].recipe
        assert np.mean(case.labels != people[0].labels) > 0.02


def test_image_is_in_range_and_background_exactly_minus_one(people):
    for case in people:
        image = case.volume.data
        assert image.shape == HALF.shape
        assert image.dtype == np.float32
        assert np.array_equal(case.volume.affine, HALF.affine)
        assert np.array_equal(image == -1, case.labels == 0)
        assert image.max() == 1


def test_warps_are_invertible(people):
    assert min(case.min_jacobian for case in people) > 0


def test_names_and_facts(people):
    case = people[3]
    assert case.volume.case_id == "sim-s0011-0003" == simulate.case_id(SEED, 3)
    assert set(case.participant) == {"age", "sex", "site"}
    assert 20 <= case.recipe.age <= 85
    assert json.loads(json.dumps(case.provenance())) == case.provenance()


def test_volume_columns_add_up(people):
    volumes = people[0].volumes
    assert len(volumes) == 1 + 32 + 68
    parts = [v for k, v in volumes.items() if not k.startswith("ctx-") and k != "total intracranial"]
    assert sum(parts) == pytest.approx(volumes["total intracranial"], rel=1e-6)
    left = [v for k, v in volumes.items() if k.startswith("ctx-lh-")]
    assert sum(left) == pytest.approx(volumes["left cerebral cortex"], rel=1e-6)


def test_true_volumes_agree_with_voxel_counts_on_the_full_grid(people):
    case = simulate.simulate_case(FULL, SEED, 0)
    assert case.volumes == people[0].volumes  # one person on two grids
    for name, tolerance in (
        ("total intracranial", 0.001), ("left thalamus", 0.015), ("right hippocampus", 0.02),
        ("left lateral ventricle", 0.03), ("brain-stem", 0.01), ("ctx-lh-superiorfrontal", 0.015),
    ):  # fmt: skip
        counted = np.isin(case.labels, atlas().names[name]).sum()
        assert counted == pytest.approx(case.volumes[name], rel=tolerance), name


def test_people_vary_like_people():
    recipes = [simulate.draw_recipe(np.random.default_rng([SEED, i, 0])) for i in range(400)]
    size = np.array([r.log_size for r in recipes])
    age = np.array([r.age for r in recipes])
    male = np.array([r.sex == "M" for r in recipes])
    ventricle = np.array([r.growth[4] for r in recipes])
    assert 0.07 < size.std() < 0.11
    assert 0.08 < size[male].mean() - size[~male].mean() < 0.16
    assert np.corrcoef(age, ventricle)[0, 1] > 0.4
    assert 0.4 < male.mean() < 0.6


def test_regional_volumes_vary_beyond_head_size(people):
    share = [c.volumes["left hippocampus"] / c.volumes["total intracranial"] for c in people]
    assert 0.03 < np.std(share) / np.mean(share) < 0.25


@pytest.mark.parametrize("strength", [0.1, 0.25])
def test_shrunken_hippocampus_loses_what_it_says_and_spares_the_rest(people, strength):
    change = changes(with_defect("shrunken-hippocampus", strength, 3), people[:3])
    for side in ("left", "right"):
        assert change[f"{side} hippocampus"] == pytest.approx(-strength, abs=0.015)
    rest = {k: v for k, v in change.items() if not k.startswith("ctx-") and "hippocampus" not in k}
    assert max(np.abs(v).max() for v in rest.values()) < 0.03


def test_large_ventricles_grow_as_asked(people):
    change = changes(with_defect("large-ventricles", 0.5, 4), people[:4])
    assert change["left lateral ventricle"] == pytest.approx(0.5, abs=0.08)
    assert change["right lateral ventricle"] == pytest.approx(0.5, abs=0.08)
    assert np.abs(change["left thalamus"]).max() < 0.03
    assert np.abs(change["total intracranial"]).max() < 0.01


def test_blur_removes_detail_and_keeps_labels(people):
    for case, person in zip(with_defect("blur", 2.0, 2), people, strict=False):
        assert np.array_equal(case.labels, person.labels)
        assert np.all(case.volume.data[case.labels == 0] == -1)
        detail = [float(np.abs(ndimage.laplace(c.volume.data))[c.labels == 2].mean()) for c in (case, person)]
        assert detail[0] < 0.6 * detail[1]


def test_noise_is_as_strong_as_asked(people):
    spread = [
        np.std(case.volume.data[ndimage.binary_erosion(case.labels == 10)])
        for case in (people[0], *(with_defect("noise", s, 1)[0] for s in (0.1, 0.2)))
    ]
    assert spread[0] < spread[1] < spread[2]


def test_collapse_leaves_the_mean_and_takes_the_variety(people):
    cases = with_defect("collapse", 0.8)

    def spread(cohort):
        return np.mean([np.std(np.log([c.volumes[k] for c in cohort])) for k in people[0].volumes])

    assert spread(cases) < 0.35 * spread(people)
    pictures = np.stack([c.volume.data for c in cases])
    assert pictures.std(axis=0).mean() < 0.8 * np.stack([c.volume.data for c in people]).std(axis=0).mean()


def test_background_artefact_is_outside_the_brain_only(people):
    case = with_defect("background-artefact", 0.3, 1)[0]
    outside = case.labels == 0
    assert np.array_equal(case.volume.data[~outside], people[0].volume.data[~outside])
    assert np.mean(case.volume.data[outside] > -0.999) > 0.3
    assert -1 < case.volume.data[outside].max() <= -0.7


def test_flip_mirrors_image_labels_and_volumes(people):
    case, person = with_defect("left-right-flip", 1.0, 1)[0], people[0]
    assert np.array_equal(case.volume.data, person.volume.data[::-1])
    assert case.volumes["left hippocampus"] == person.volumes["right hippocampus"]
    assert case.volumes["ctx-rh-insula"] == person.volumes["ctx-lh-insula"]
    assert np.array_equal(case.labels == 17, (person.labels == 53)[::-1])
    assert np.array_equal(case.labels == 16, (person.labels == 16)[::-1])


def test_flip_takes_the_share_asked_for():
    flipped = [case.flipped for case in with_defect("left-right-flip", 0.5, 8)]
    assert 1 <= sum(flipped) <= 7


@pytest.mark.parametrize(
    ("text", "expected"), [("", ("", 0.0)), ("blur:2.5", ("blur", 2.5)), ("collapse", ("collapse", 0.8))]
)
def test_defects_are_read_from_the_command_line(text, expected):
    assert simulate.parse_defect(text) == expected


@pytest.mark.parametrize(
    ("text", "hint"), [("smear", "shrunken-hippocampus"), ("blur:x", "not a number"), ("blur:99", "0.1 to 10")]
)
def test_a_wrong_defect_says_what_is_allowed(text, hint):
    with pytest.raises(InputError, match=hint):
        simulate.parse_defect(text)


def test_a_wrong_number_is_refused():
    with pytest.raises(InputError, match="n is 0"):
        next(simulate.simulate(HALF, 0, 1))
    with pytest.raises(InputError, match="seed -1"):
        simulate.simulate_case(HALF, -1, 0)


def test_every_cohort_says_what_it_is():
    assert simulate.describe("", 0) == "simulated"
    assert simulate.describe("blur", 1.5) == "control: blur 1.5 mm"
    for name, defect in simulate.DEFECTS.items():
        assert simulate.describe(name, defect.strength).startswith("control: ")
        assert defect.low <= defect.strength <= defect.high
        assert (defect.on_recipe is None) != (defect.on_image is None)


def test_memorised_is_the_same_person_with_other_intensities(people):
    for case, person in zip(with_defect("memorised", 0.05, 3), people, strict=False):
        assert np.array_equal(case.labels, person.labels)
        assert case.volumes == person.volumes
        assert np.array_equal(case.volume.data == -1, case.labels == 0)
        brain = case.labels > 0
        change = case.volume.data[brain] - person.volume.data[brain]
        assert 0.02 < change.std() < 0.15
        assert np.corrcoef(case.volume.data[brain], person.volume.data[brain])[0, 1] > 0.95
        distance = [np.linalg.norm(case.volume.data - other.volume.data) for other in people]
        assert int(np.argmin(distance)) == person.index


def test_the_deformation_model_is_small_and_treats_both_sides_alike():
    assert deformation.WEIGHTS.stat().st_size <= 5e6
    for component in deformation.model().components.numpy():
        mirrored = component[:, ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None, None]
        either = min(np.abs(mirrored - component).max(), np.abs(mirrored + component).max())
        assert either <= 0.05 * np.abs(component).max()


def test_drawn_fields_have_the_variance_of_the_model():
    fields = [deformation.draw_velocity(1.0, np.random.default_rng(k))[:, 1::2, 1::2, 1::2] for k in range(60)]
    expected = (deformation.model().components.numpy() ** 2).sum(axis=0) + deformation.model().rest_sd ** 2
    inside = atlas().brain[1::2, 1::2, 1::2]
    ratio = np.mean(np.square(fields), axis=0)[:, inside].mean() / expected[:, inside].mean()
    assert ratio == pytest.approx(1, abs=0.2)
    half = deformation.draw_velocity(0.5, np.random.default_rng(0))
    assert np.allclose(2 * half, deformation.draw_velocity(1.0, np.random.default_rng(0)), atol=1e-5)


def test_what_components_leave_out_is_as_rough_as_fitted():
    sigma = deformation.model().rest_sigma
    fitted = deformation.Model(torch.zeros(0, 3, *deformation.SHAPE), 1.0, sigma)
    fields = np.stack([deformation._rest(fitted, np.random.default_rng(k)) for k in range(20)])
    assert fields.std() == pytest.approx(1, rel=0.1)
    lag = np.mean(fields[:, :, 1:] * fields[:, :, :-1])  # a smoothed field's correlation at distance d
    assert lag == pytest.approx(np.exp(-((deformation.SPACING / sigma) ** 2) / 4), abs=0.05)


def test_an_impossible_field_is_damped_until_it_can_be_inverted():
    warp = make_warp(0.0, {}, 4.0, np.random.default_rng(0))
    assert warp.jacobian.min() >= LEAST_JACOBIAN
