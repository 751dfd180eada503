"""Checks of the image: each moves with the fault it is for."""

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from core.errors import InputError
from core.image_checks import CHECKS, check_image, unlike_real
from core.simulate import simulate_case
from core.volume import HALF


@pytest.fixture(scope="module")
def brain():
    case = simulate_case(HALF, 3, 0)
    return case.volume.data, case.labels


def measured(data, labels):
    return check_image(np.clip(data, -1, 1).astype(np.float32), labels, HALF.spacing)


def test_blur_lowers_sharpness_more_the_stronger_it_is(brain):
    data, labels = brain
    values = [measured(ndimage.gaussian_filter(data, s), labels)["sharpness"] for s in (0.01, 0.7, 1.4, 2.1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.6 * values[0]


def test_haze_raises_the_background_by_its_size(brain):
    data, labels = brain
    clean, hazy = measured(data, labels), measured(np.where(data <= -1, -0.9, data), labels)
    inside = (data[labels > 0].astype(float) + 1).mean()
    assert clean["background"] == pytest.approx(0, abs=0.02)
    assert hazy["background"] == pytest.approx(0.1 / inside, rel=0.1)
    assert hazy["contrast"] == pytest.approx(clean["contrast"], rel=0.02)


def test_contrast_falls_when_tissues_come_together_and_changes_sign_with_them(brain):
    data, labels = brain
    grey = np.isin(labels, (3, 42)) | (labels >= 1000)
    white = np.isin(labels, (2, 41))
    gap = data[white].mean() - data[grey].mean()
    clean = measured(data, labels)["contrast"]
    closer, swapped = (measured(data + grey * share * gap, labels)["contrast"] for share in (0.5, 2.0))
    assert clean > 1
    assert 0 < closer < 0.7 * clean
    assert swapped < 0


def test_a_mirrored_half_is_symmetric_and_a_shifted_one_less(brain):
    data, labels = brain
    middle = HALF.shape[0] // 2
    mirrored = np.concatenate([data[:middle], data[:middle][::-1]])
    both = np.concatenate([labels[:middle], labels[:middle][::-1]])
    assert measured(mirrored, both)["symmetry"] == pytest.approx(1)
    shifted = mirrored.copy()
    shifted[:middle] = np.roll(shifted[:middle], 3, axis=1)
    assert measured(shifted, both)["symmetry"] < 0.95


def test_scale_of_the_intensities_does_not_matter(brain):
    data, labels = brain
    assert measured((data + 1) * 0.5 - 1, labels) == pytest.approx(measured(data, labels), rel=1e-3)


def test_what_cannot_be_looked_at_is_refused_or_a_gap(brain):
    data, labels = brain
    with pytest.raises(InputError, match="differ"):
        measured(data[1:], labels)
    with pytest.raises(InputError, match="empty"):
        measured(data, np.zeros_like(labels))
    assert np.isnan(measured(data, (labels == 10) * 10)["contrast"])


def test_only_volumes_far_from_the_real_ones_are_called_unlike():
    rng = np.random.default_rng(0)
    real = pd.DataFrame(rng.normal(1, 0.1, (20, 4)), columns=list(CHECKS)).assign(cohort="real", subject="r")
    other = pd.DataFrame([[1, 1, 1, 1], [0.2, 1, 1, 1], [1, 3, np.nan, 1]], columns=list(CHECKS))
    table = unlike_real(pd.concat([real, other.assign(cohort="Gen", subject="g")], ignore_index=True), "real")
    assert table["unlike"].tolist() == [""] * 21 + ["sharpness low", "background high, contrast low"]
    few = unlike_real(table[table["cohort"] == "Gen"], "real")
    assert (few["unlike"] == "").all()
