import numpy as np
import pytest
from scipy import linalg, ndimage

from core.errors import InputError
from core.metrics import published
from core.metrics.features import frechet_distance

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def features(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def volume(shape, seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.clip(noise / noise.std() * 0.4, -1, 1).astype(np.float32)


def as_the_code_fills_its_array(real):
    filled = np.empty_like(real)
    for step in range((len(real) + 1) // 2):
        filled[2 * step : 2 * step + 2] = real[step]
    return filled


def plain_ms_ssim(x, y, normalize):
    x, y = x.astype(float), y.astype(float)
    ssims, contrasts = [], []
    for _ in WEIGHTS:
        mx, my, xx, yy, xy = (ndimage.gaussian_filter(v, 1.5) for v in (x, y, x * x, y * y, x * y))
        vx, vy, cov = xx - mx**2, yy - my**2, xy - mx * my
        contrast = (2 * cov + 0.03**2) / (vx + vy + 0.03**2)
        ssims.append((contrast * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)).mean())
        contrasts.append(contrast.mean())
        a, b, c = (n // 2 * 2 for n in x.shape)
        x, y = (sum(v[i:a:2, j:b:2, k:c:2] for i in (0, 1) for j in (0, 1) for k in (0, 1)) / 8 for v in (x, y))
    if normalize:
        ssims, contrasts = [(v + 1) / 2 for v in ssims], [(v + 1) / 2 for v in contrasts]
    result = 1.0
    for scale in range(4):
        result *= contrasts[scale] ** WEIGHTS[scale] * ssims[4] ** WEIGHTS[4]
    return result


@pytest.mark.parametrize(("n", "m"), [(40, 40), (41, 30)])
def test_fid_is_that_of_the_first_half_doubled(n, m):
    real, synthetic = features(n, 6, 0), features(m, 6, 1, 0.3)
    rows = as_the_code_fills_its_array(real)
    a, b = np.cov(rows, rowvar=False), np.cov(synthetic, rowvar=False)
    gap = rows.mean(0) - synthetic.mean(0)
    expected = gap @ gap + np.trace(a + b - 2 * linalg.sqrtm(a @ b)).real
    assert published.fid(real, synthetic) == pytest.approx(expected, rel=1e-9)
    assert published.fid(real, synthetic) != pytest.approx(frechet_distance(real, synthetic), rel=1e-2)
    changed = real.copy()
    changed[(n + 1) // 2 :] += 100  # never looked at
    assert published.fid(changed, synthetic) == published.fid(real, synthetic)


def test_feature_mmd_is_the_block_sum_over_n_minus_1():
    real, synthetic = features(20, 5, 0), features(20, 5, 1, 0.4)
    rows, total = as_the_code_fills_its_array(real), 0.0
    for i in range(0, 20, 2):
        x, y = rows[i : i + 2], synthetic[i : i + 2]
        total += (x @ x.T).sum() / 4 + (y @ y.T).sum() / 4 - (x @ y.T).sum() / 2
    assert published.feature_mmd(real, synthetic) == pytest.approx(total / 19, rel=1e-9)


def test_feature_mmd_by_hand_and_its_order_dependence():
    # reals become 1, 1, 2, 2; pairs of synthetic rows average to 2 and 6: ((1-2)² + (2-6)²) / 3
    real, synthetic = np.array([[1.0], [2.0], [50.0], [60.0]]), np.array([[1.0], [3.0], [5.0], [7.0]])
    assert published.feature_mmd(real, synthetic) == pytest.approx(17 / 3)
    assert published.feature_mmd(real, synthetic[[0, 2, 1, 3]]) == pytest.approx(((1 - 3) ** 2 + (2 - 5) ** 2) / 3)
    assert published.feature_mmd(real, np.vstack([synthetic, [[99.0]]])) == pytest.approx(17 / 3)


def test_feature_mmd_is_half_of_squared_gap_and_within_pair_variance():
    # E = N/2 (‖Δμ‖² + Tr Σ + Tr Σ / 2) / (N - 1), so it stays far above 0 for equal distributions
    real, synthetic = features(4000, 10, 0), features(4000, 10, 1, 0.5)
    assert published.feature_mmd(real, synthetic) == pytest.approx((10 * 0.25 + 10 + 5) / 2, rel=0.05)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(48, 56, 50), (72, 96, 72)])
def test_ms_ssim_pair_equals_the_plain_formulas(shape, normalize):
    x = volume(shape, 0)
    y = np.clip(x + 0.1 * volume(shape, 1), -1, 1)
    expected = plain_ms_ssim(x, y, normalize)
    assert published.ms_ssim_pair(x, y, normalize=normalize) == pytest.approx(expected, abs=5e-6)
    assert 0.3 < expected < 0.998


def test_ms_ssim_pair_identity_symmetry_and_the_factor_counted_four_times():
    x, y = np.full((16, 16, 16), 0.2, np.float32), np.full((16, 16, 16), 0.6, np.float32)
    assert published.ms_ssim_pair(x, x, normalize=False) == pytest.approx(1, abs=1e-5)
    luminance = (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)
    expected = luminance ** (4 * 0.1333)
    assert published.ms_ssim_pair(x, y, normalize=False) == pytest.approx(expected, abs=1e-4)
    assert published.ms_ssim_pair(y, x, normalize=True) == pytest.approx(
        ((1 + luminance) / 2) ** (4 * 0.1333), abs=1e-4
    )


def test_ms_ssim_pair_of_a_negative_is_nan_unless_normalized():
    x = volume((32, 32, 32), 0)
    assert np.isnan(published.ms_ssim_pair(x, -x, normalize=False))
    assert 0 < published.ms_ssim_pair(x, -x, normalize=True) < 0.5


class Lazy:
    """A cohort that counts reads and remembers how many of its volumes are alive."""

    def __init__(self, n, seed):
        self.n, self.seed, self.reads = n, seed, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        self.reads.append(int(i))
        return volume((6, 7, 8), self.seed + int(i))


def test_image_mmd_equals_the_block_formula_over_the_planned_groups():
    real, synthetic = Lazy(5, 0), Lazy(4, 100)
    value = published.image_mmd(real, synthetic, seed=3)
    assert synthetic.reads == [0, 1, 2, 3]  # each once, in order
    assert len(real.reads) == 5 * 3 * 2
    groups = [group for group in published.plan_image_mmd(5, 4, seed=3) if group[0][0] == "synthetic"]
    blocks = []
    for (_, a), (_, b), (_, c), (_, d) in groups:
        assert b == a + 1 and c != d
        y = np.stack([synthetic[a].ravel(), synthetic[b].ravel()]).astype(float)
        x = np.stack([real[c].ravel(), real[d].ravel()]).astype(float)
        blocks.append((x @ x.T).sum() / 4 + (y @ y.T).sum() / 4 - (x @ y.T).sum() / 2)
    assert len(blocks) == 5 * 3
    assert value == pytest.approx(np.mean(blocks), rel=1e-5)
    assert published.image_mmd(real, synthetic, seed=3) == value
    assert published.image_mmd(real, synthetic, seed=4) != value


def test_image_mmd_by_hand_is_not_divided_by_the_voxels():
    real, synthetic = [np.full((2, 3, 4), v) for v in (0.0, 2.0)], [np.full((2, 3, 4), v) for v in (1.0, 4.0)]
    assert published.image_mmd(real, synthetic, seed=0) == pytest.approx(24 * (1.0 - 2.5) ** 2)
    assert published.image_mmd(real, real[::-1], seed=0) == 0


def test_ms_ssim_plan_pairs_synthetic_with_real_and_normalizes_real_pairs_only():
    groups = published.plan_ms_ssim(12, 7, seed=0)
    mixed = [group for group in groups if group[0][0] == "synthetic"]
    real = [group for group in groups if group[0][0] == "real"]
    assert (len(mixed), len(real)) == (10 * 7, 1000)
    assert all(np.bincount([i for (_, i), _ in mixed]) == 10)
    assert {j for _, (_, j) in mixed} == set(range(12))
    assert all(i < j for (_, i), (_, j) in real)
    assert [g for g in published.plan_ms_ssim(12, 9, seed=0) if g[0][0] == "real"] == real
    x, y = volume((20, 20, 20), 0), volume((20, 20, 20), 0) * 0.7
    for cohorts, normalize in ((("synthetic", "real"), False), (("real", "real"), True)):
        expected = published.ms_ssim_pair(x, y, normalize=normalize)
        assert published.measure_ms_ssim(x, y, cohorts=cohorts) == expected


def test_passes_are_recorded_as_they_were_done():
    groups = published.plan_ms_ssim(6, 5, seed=0, passes=3)
    values = np.linspace(0.1, 0.9, len(groups))
    score = published.summarise_ms_ssim(groups, values, n_real=6, n_synthetic=5, seed=0, n_boot=1)
    assert score.settings["passes"] == 3


def test_nan_pairs_are_skipped_and_counted():
    groups = published.plan_ms_ssim(4, 4, seed=0)
    values = np.full(len(groups), 0.8)
    values[:3] = np.nan
    score = published.summarise_ms_ssim(groups, values, n_real=4, n_synthetic=4, seed=0, n_boot=1)
    assert score.value == pytest.approx(0.8)
    assert f"3 of {len(groups)} groups have no value and are left out" in score.warnings


def test_bad_input_is_refused():
    x = volume((20, 20, 20), 0)
    one, two = [x], [x, x]
    with pytest.raises(InputError, match="real cohort: 1 volume"):
        published.image_mmd(one, two, seed=0)
    with pytest.raises(InputError, match="synthetic cohort: 1 volume"):
        published.image_mmd(two, one, seed=0)
    with pytest.raises(InputError, match="one shape"):
        published.image_mmd(two, [x, x[1:]], seed=0)
    with pytest.raises(InputError, match="NaN or Inf"):
        published.image_mmd(two, [x, x * np.nan], seed=0)
    with pytest.raises(InputError, match="at least 1 pass"):
        published.image_mmd(two, two, seed=0, passes=0)
    with pytest.raises(InputError, match="halved four times"):
        published.ms_ssim_pair(x[:15], x[:15], normalize=True)
    with pytest.raises(InputError, match="first volume: NaN"):
        published.ms_ssim_pair(x * np.nan, x, normalize=True)
    with pytest.raises(InputError, match="pairs need 2 and 1"):
        published.plan_ms_ssim(1, 4, seed=0)
    for function in (published.fid, published.feature_mmd):
        with pytest.raises(InputError, match="width 3, synthetic features 4"):
            function(features(5, 3, 0), features(5, 4, 0))
