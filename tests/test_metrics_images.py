import json

import numpy as np
import pytest
from scipy import ndimage

from core.errors import InputError
from core.metrics import METRICS, VolumeMetric
from core.metrics.images import (
    WEIGHTS,
    measure_within,
    ms_ssim,
    plan_against_real,
    plan_within,
    scales_for,
    summarise_within,
)
from core.metrics.resampling import mean_interval
from core.volume import FULL, HALF

VOLUME_METRICS = [metric for metric in METRICS.values() if isinstance(metric, VolumeMetric)]


def smooth_volume(shape, seed, sigma=1.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    volume = np.clip(noise / noise.std() * 0.4, -1, 1).astype(np.float32)
    volume[:4] = -1  # background
    return volume


def noisy(volume, level, seed=9):
    return np.clip(volume + level * np.random.default_rng(seed).normal(size=volume.shape), -1, 1).astype(np.float32)


def monai_value(x, y, **settings):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    metric = metrics.MultiScaleSSIMMetric(spatial_dims=3, **settings)
    return float(metric(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None]))


def plain_ms_ssim(x, y, data_range, scales, window, sigma=1.5):
    """The definition in float64, with one correlation an axis and the border cut off."""
    x, y = x.astype(float), y.astype(float)
    gaussian = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    inside = (slice(window // 2, -(window // 2)),) * 3

    def local_mean(volume):
        for axis in range(3):
            volume = ndimage.correlate1d(volume, gaussian / gaussian.sum(), axis=axis)
        return volume[inside]

    result = 1.0
    for scale in range(scales):
        mx, my = local_mean(x), local_mean(y)
        vx, vy, cov = local_mean(x * x) - mx**2, local_mean(y * y) - my**2, local_mean(x * y) - mx * my
        contrast = (2 * cov + c2) / (vx + vy + c2)
        luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        mean = (contrast * luminance).mean() if scale == scales - 1 else contrast.mean()
        result *= max(mean, 0) ** (WEIGHTS[scale] / (sum(WEIGHTS[:scales]) if scales < 5 else 1))
        x, y = (
            v[: v.shape[0] // 2 * 2, : v.shape[1] // 2 * 2, : v.shape[2] // 2 * 2]
            .reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2, v.shape[2] // 2, 2)
            .mean((1, 3, 5))
            for v in (x, y)
        )
    return result


@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_equals_monai_at_the_standard_window(data_range):
    x = smooth_volume((48, 61, 45), 0) * data_range / 2
    y = noisy(x / data_range * 2, 0.2) * np.float32(data_range / 2)
    weights = tuple(np.array(WEIGHTS[:3]) / sum(WEIGHTS[:3]))
    expected = monai_value(x, y, data_range=data_range, weights=weights)
    assert ms_ssim(x, y, data_range=data_range, scales=3) == pytest.approx(expected, abs=1e-5)
    assert 0.1 < expected < 0.99


@pytest.mark.parametrize("window", [4, 5, 7])
def test_equals_monai_over_five_scales(window):
    x, y = smooth_volume((112, 116, 113), 0), smooth_volume((112, 116, 113), 0, sigma=1.7)
    expected = monai_value(x, y, data_range=2.0, kernel_size=window)
    assert ms_ssim(x, y, data_range=2.0, window=window) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_equals_monai_on_the_full_grid():
    x = smooth_volume(FULL.shape, 0)
    y = noisy(x, 0.2)
    assert ms_ssim(x, y, data_range=2.0) == pytest.approx(monai_value(x, y, data_range=2.0, kernel_size=9), abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "scales", "window"), [((72, 96, 72), 4, 9), ((45, 50, 47), 3, 11), ((33, 31, 40), 2, 5)]
)
def test_equals_the_definition_in_double_precision(shape, scales, window):
    x = smooth_volume(shape, 0)
    y = noisy(x, 0.3)
    expected = plain_ms_ssim(x, y, 2.0, scales, window)
    assert ms_ssim(x, y, data_range=2.0, scales=scales, window=window) == pytest.approx(expected, abs=2e-6)


def test_window_that_fits_is_chosen_by_the_stated_rule():
    half = smooth_volume(HALF.shape, 0), noisy(smooth_volume(HALF.shape, 0), 0.3)
    value = ms_ssim(*half, data_range=2.0, scales=4)
    assert value == ms_ssim(*half, data_range=2.0, scales=4, window=9)
    assert ms_ssim(*half, data_range=2.0, scales=3) == ms_ssim(*half, data_range=2.0, scales=3, window=11)
    assert measure_within(*half, cohorts=("real", "real")) == value
    assert (scales_for(FULL.shape), scales_for(HALF.shape)) == (5, 4)


def test_identity_symmetry_and_bounds():
    x, y = smooth_volume((40, 41, 44), 0), smooth_volume((40, 41, 44), 1)
    assert ms_ssim(x, x, data_range=2.0, scales=3) == pytest.approx(1, abs=1e-6)
    value = ms_ssim(x, y, data_range=2.0, scales=3)
    assert ms_ssim(y, x, data_range=2.0, scales=3) == pytest.approx(value, abs=1e-6)
    assert 0 <= value < 0.6
    assert ms_ssim(x, -x, data_range=2.0, scales=3) == 0  # negative means count as 0
    assert ms_ssim(x * 50, y * 50, data_range=100.0, scales=3) == pytest.approx(value, abs=1e-5)


def test_constant_volumes_differ_by_their_luminance_alone():
    x, y = np.full((20, 20, 20), 0.2, np.float32), np.full((20, 20, 20), 0.6, np.float32)
    c1 = 0.01**2
    luminance = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    expected = luminance ** (WEIGHTS[1] / (WEIGHTS[0] + WEIGHTS[1]))
    assert ms_ssim(x, y, data_range=1.0, scales=2, window=9) == pytest.approx(expected, abs=1e-5)


def test_falls_with_noise():
    x = smooth_volume((44, 48, 44), 0)
    values = [ms_ssim(x, noisy(x, level), data_range=2.0, scales=3) for level in (0, 0.05, 0.1, 0.2, 0.4)]
    assert np.all(np.diff(values) < 0)


X = np.zeros((40, 40, 40), np.float32)
HOLED = np.where(np.arange(64000).reshape(X.shape) == 5, np.nan, X)


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        (X, X[1:], {"data_range": 2.0}, r"\(40, 40, 40\) and \(39, 40, 40\)"),
        (X[0], X[0], {"data_range": 2.0}, "two 3D volumes"),
        (X, HOLED, {"data_range": 2.0}, "second volume: NaN or Inf"),
        (X, X, {"data_range": 0.0, "scales": 2}, "data range > 0, found 0.0"),
        (X, X, {"data_range": -1.0, "scales": 2}, "data range > 0"),
        (X, X, {"data_range": np.nan, "scales": 2}, "data range > 0"),
        (X, X, {"data_range": 2.0}, "2 voxels wide at scale 5, less than the window of 9"),
        (X, X, {"data_range": 2.0, "scales": 3, "window": 11}, "10 voxels wide at scale 3, less than the window of 11"),
        (X, X, {"data_range": 2.0, "scales": 6}, "1 to 5 scales"),
        (X, X, {"data_range": 2.0, "scales": 2, "window": 0}, "window of 0"),
        (X, X, {"data_range": 2.0, "scales": 2, "sigma": 0.0}, "width > 0"),
    ],
)
def test_bad_volumes_and_settings_are_refused(x, y, settings, message):
    with pytest.raises(InputError, match=message) as error:
        ms_ssim(x, y, **settings)
    assert error.value.remedy


def test_half_grid_never_silently_loses_a_scale():
    with pytest.raises(InputError, match="4 on the half grid"):
        ms_ssim(np.zeros(HALF.shape), np.zeros(HALF.shape), data_range=2.0)
    with pytest.raises(InputError, match="smaller than the window"):
        scales_for((8, 20, 20))


@pytest.mark.parametrize(("n", "pairs"), [(2, 1), (3, 3), (5, 10), (6, 12), (24, 48), (400, 800)])
def test_plan_gives_each_volume_the_same_share(n, pairs):
    groups = [group for group in plan_within(n, n, seed=0) if group[0][0] == "synthetic"]
    assert len(groups) == len(set(groups)) == pairs
    members = np.bincount([index for group in groups for _, index in group], minlength=n)
    assert set(members) == {2 * pairs // n}
    assert all(first != second for first, second in groups)


def test_real_pairs_are_the_same_for_every_generator_and_change_with_the_seed():
    def real(plan):
        return [group for group in plan if group[0][0] == "real"]

    assert real(plan_within(30, 10, seed=0)) == real(plan_within(30, 40, seed=0))
    assert real(plan_within(30, 10, seed=0)) != real(plan_within(30, 10, seed=1))
    assert len(plan_within(30, 30, seed=0, pairs_per_volume=8)) == 2 * len(plan_within(30, 30, seed=0))
    with pytest.raises(InputError, match="synthetic cohort: 1 volume"):
        plan_within(5, 1, seed=0)


def test_interval_of_disjoint_groups_is_the_usual_one_of_a_mean():
    values = np.random.default_rng(0).normal(size=30)
    groups = [(("synthetic", 2 * i), ("synthetic", 2 * i + 1)) for i in range(30)]
    low, high = mean_interval(groups, values)
    from scipy import stats

    half_width = stats.t.ppf(0.975, 59) * values.std() / np.sqrt(30)
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width))


@pytest.mark.parametrize(("subject", "pair"), [(1.0, 0.3), (0.1, 1.0)])
def test_interval_of_overlapping_pairs_covers_the_mean(subject, pair):
    rng, groups = np.random.default_rng(0), plan_within(30, 30, seed=0)[:60]
    covered, naive = [], []
    for _ in range(300):
        effect = rng.normal(size=30) * subject
        values = np.array([effect[i] + effect[j] for (_, i), (_, j) in groups]) + rng.normal(size=60) * pair
        low, high = mean_interval(groups, values)
        covered.append(low <= 0 <= high)
        naive.append(abs(values.mean()) <= 2 * values.std() / np.sqrt(60))
    assert 0.9 <= np.mean(covered) <= 0.99
    assert subject < 1 or np.mean(naive) < 0.85  # pairs are not independent


@pytest.mark.parametrize("metric", VOLUME_METRICS, ids=lambda metric: metric.key)
def test_every_volume_metric_from_plan_to_score(metric):
    rng = np.random.default_rng(0)
    common = smooth_volume((18, 20, 18), 0)
    volumes = {
        name: [noisy(common, 0.3 if name == "real" else 0.1, seed=rng.integers(1000)) for _ in range(6)]
        for name in ("real", "synthetic")
    }
    groups = metric.plan(6, 6, seed=0)
    assert groups == metric.plan(6, 6, seed=0)
    assert len(groups[0]) == 1 or groups != metric.plan(6, 6, seed=1)  # every volume by itself: nothing is drawn

    def measured(group):
        return metric.measure(*(volumes[name][i] for name, i in group), cohorts=tuple(name for name, _ in group))

    known = {group: measured(group) for group in set(groups)}
    values = [known[group] for group in groups]
    score = metric.summarise(groups, values, n_real=6, n_synthetic=6, seed=0, n_boot=200)
    synthetic = [value for group, value in zip(groups, values, strict=True) if ("synthetic") in dict(group)]
    assert score.value == pytest.approx(np.mean(synthetic))
    assert metric.range[0] <= score.value <= metric.range[1]
    assert score.ci_low < score.value < score.ci_high
    assert score.floor != score.value and score.floor is not None
    assert json.loads(json.dumps(score.to_dict())) == score.to_dict()
    bare = metric.summarise(groups, values, n_real=6, n_synthetic=6, seed=0, n_boot=0)
    assert bare.ci_low is None and bare.value == score.value


def test_collapse_raises_the_similarity_within_a_cohort_above_the_real_one():
    real = [smooth_volume((20, 20, 20), seed) for seed in range(6)]
    collapsed = [noisy(real[0], 0.05, seed) for seed in range(6)]
    volumes = {"real": real, "synthetic": collapsed}
    groups = plan_within(6, 6, seed=0)
    values = [measure_within(*(volumes[c][i] for c, i in group), cohorts=("real", "real")) for group in groups]
    score = summarise_within(groups, values, n_real=6, n_synthetic=6, seed=0, n_boot=1)
    assert score.ci_low > score.settings["floor_ci_high"]


def test_missing_values_are_counted_and_a_score_without_any_is_a_gap():
    groups = plan_within(6, 6, seed=0)
    values = [np.nan if i == 3 else 0.5 + i / 100 for i in range(len(groups))]
    score = summarise_within(groups, values, n_real=6, n_synthetic=6, seed=0, n_boot=1)
    assert score.value == pytest.approx(np.mean([v for v in values[:12] if v == v]))
    assert "1 of 24 groups have no value and are left out" in score.warnings
    gap = summarise_within(groups, [np.nan] * len(groups), n_real=6, n_synthetic=6, seed=0, n_boot=1)
    assert gap.value is gap.ci_low is gap.floor is None
    assert any("no group of synthetic volumes has a value" in warning for warning in gap.warnings)
    with pytest.raises(InputError, match="23 values for 24 groups"):
        summarise_within(groups, values[1:], n_real=6, n_synthetic=6, seed=0, n_boot=1)


@pytest.mark.parametrize(("n_real", "n_synthetic", "each"), [(20, 15, 4), (3, 7, 3), (12, 12, 4)])
def test_pairs_against_real_use_every_volume_equally_often(n_real, n_synthetic, each):
    groups = plan_against_real(n_real, n_synthetic, seed=0)
    mixed = [(i, j) for (role, i), (other, j) in groups if (role, other) == ("synthetic", "real")]
    assert len(set(mixed)) == len(mixed) == n_synthetic * each
    used = np.bincount([j for _, j in mixed], minlength=n_real)
    assert used.max() - used.min() <= 1
    assert set(np.bincount([i for i, _ in mixed])) == {each}
    floor = [group for group in groups if group[0][0] == "real"]
    assert floor == [group for group in plan_within(n_real, n_synthetic, seed=0) if group[0][0] == "real"]
