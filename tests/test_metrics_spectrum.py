import itertools

import numpy as np
import pytest
from scipy import ndimage

from core.errors import InputError
from core.metrics.spectrum import EDGES, band_power, measure_sharpness, plan_single, summarise_sharpness


def smooth_volume(shape, seed, sigma=1.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (noise / noise.std()).astype(np.float32)


def sharpness(volume):
    return measure_sharpness(volume, cohorts=("real",))


@pytest.mark.parametrize("shape", [(24, 32, 24), (25, 31, 27)])
def test_equals_a_sum_over_the_full_transform(shape):
    volume = smooth_volume(shape, 0, 0.8) + 3
    power = np.abs(np.fft.fftn(volume.astype(float))) ** 2
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    power[0, 0, 0] = 0
    sums = [power[(radius >= a) & (radius < b)].sum() for a, b in itertools.pairwise(EDGES)]
    sums[-1] += power[radius == 0.5].sum()
    np.testing.assert_allclose(band_power(volume), np.array(sums) / np.sum(sums), rtol=1e-4)


@pytest.mark.parametrize(("period", "band"), [(32, 0), (12, 1), (6, 2), (3, 3), (2, 3)])
def test_a_wave_lies_in_its_band(period, band):
    wave = np.cos(2 * np.pi * np.arange(96) / period)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = 96
        volume = np.broadcast_to(wave.reshape(shape), [96 if a == axis else 8 for a in range(3)])
        assert band_power(volume)[band] == pytest.approx(1, abs=1e-5)


def test_white_noise_fills_bands_by_their_volume():
    found = band_power(np.random.default_rng(0).normal(size=(64, 64, 64)))
    expected = np.diff(np.array(EDGES) ** 3) / 0.5**3
    np.testing.assert_allclose(found, expected, rtol=0.03, atol=5e-4)


def test_blur_lowers_and_noise_raises_it_one_after_another():
    volume = smooth_volume((40, 44, 40), 0, 1.0)
    noise = np.random.default_rng(1).normal(size=volume.shape)
    blurred = [sharpness(ndimage.gaussian_filter(volume, sigma)) for sigma in (0, 0.4, 0.7, 1.0, 1.5)]
    noisy = [sharpness(volume + level * noise) for level in (0, 0.1, 0.2, 0.4, 0.8)]
    assert np.all(np.diff(blurred) < 0) and np.all(np.diff(noisy) > 0)
    assert blurred[0] == noisy[0]
    assert sharpness(5 * volume - 40) == pytest.approx(noisy[0], abs=1e-3)  # no unit of intensity


def test_blurred_cohort_lies_below_the_real_one_and_its_interval_apart():
    groups = plan_single(8, 6, seed=0)
    assert len(groups) == 14 and groups == plan_single(8, 6, seed=1)
    values = [sharpness(smooth_volume((24, 24, 24), i, 1.5 if c == "synthetic" else 1.2)) for ((c, i),) in groups]
    score = summarise_sharpness(groups, values, n_real=8, n_synthetic=6, seed=0, n_boot=1)
    assert score.value == pytest.approx(np.mean(values[:6])) and score.floor == pytest.approx(np.mean(values[6:]))
    assert score.ci_high < score.settings["floor_ci_low"]


def test_constant_volumes_are_gaps_and_bad_ones_refused():
    assert np.isnan(sharpness(np.full((8, 8, 8), 0.1)))
    for bad in (np.zeros((8, 8)), np.full((8, 8, 8), np.nan)):
        with pytest.raises(InputError, match="finite 3D volume"):
            band_power(bad)
    for edges in ((0, 0.6), (0.2, 0.1), (0.1,)):
        with pytest.raises(InputError, match="ascending edges"):
            band_power(smooth_volume((8, 8, 8), 0), edges=edges)
    with pytest.raises(InputError, match="real cohort"):
        plan_single(0, 3, seed=0)
