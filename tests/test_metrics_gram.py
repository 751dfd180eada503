import numpy as np
import pytest

from core.errors import InputError
from core.metrics import gram
from core.metrics.gram import gram_matrix, squared_distances

SHAPE = (9, 10, 11)


def volumes(n, seed=0):
    data = np.random.default_rng(seed).uniform(-1, 1, size=(n, *SHAPE)).astype(np.float32)
    data[:, :3] = -1  # background
    return data


def plain(data):
    flat = data.reshape(len(data), -1).astype(np.float64) + 1
    return flat @ flat.T


@pytest.mark.parametrize("memory_bytes", [10**9, 40_000, 4_000, 300])
def test_products_are_those_of_the_whole_matrix_whatever_the_memory(tmp_path, memory_bytes):
    data = volumes(7)
    found = gram_matrix(iter(data), 7, scratch=tmp_path, memory_bytes=memory_bytes)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, plain(data), rtol=1e-6)
    shifted = (data.reshape(7, -1) + np.float32(1)).astype(np.float64)
    np.testing.assert_allclose(found, shifted @ shifted.T, rtol=1e-13)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory_bytes", [10**9, 4_000])
def test_products_of_the_first_volumes_with_all_leave_the_others_out(tmp_path, memory_bytes):
    data = volumes(7)
    found = gram_matrix(iter(data), 7, scratch=tmp_path, rows=3, memory_bytes=memory_bytes)
    known = np.zeros((7, 7), dtype=bool)
    known[:3], known[:, :3] = True, True
    known[np.diag_indices(7)] = True
    assert (np.isfinite(found) == known).all()
    np.testing.assert_allclose(found[known], plain(data)[known], rtol=1e-6)


def test_each_volume_is_asked_for_once_and_in_order(tmp_path):
    data, asked = volumes(6), []

    def loader():
        for i, volume in enumerate(data):
            asked.append(i)
            yield volume

    gram_matrix(loader(), 6, scratch=tmp_path, memory_bytes=5_000)
    assert asked == list(range(6))


def test_memory_stays_within_the_limit(tmp_path):
    import tracemalloc

    limit, shape = 8 * 10**6, (40, 50, 50)
    make = (np.full(shape, i / 50, dtype=np.float32) for i in range(40))  # 16 MB in all
    tracemalloc.start()
    gram_matrix(make, 40, scratch=tmp_path, memory_bytes=limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < limit


def test_distances_of_equal_volumes_are_zero_and_others_exact(tmp_path):
    data = volumes(5)
    data[4] = data[1]
    squared = squared_distances(gram_matrix(data, 5, scratch=tmp_path))
    assert squared[1, 4] == squared[4, 1] == 0
    direct = ((data[0].astype(float) - data[3]) ** 2).sum()
    assert squared[0, 3] == pytest.approx(direct, rel=1e-6)
    assert not np.diag(squared).any()


def test_bad_volumes_are_refused_and_no_scratch_file_stays(tmp_path, monkeypatch):
    data = volumes(5)
    few = {"scratch": tmp_path, "memory_bytes": 5_000}
    with pytest.raises(InputError, match="4 volumes where 5 were announced"):
        gram_matrix(data[:4], 5, **few)
    with pytest.raises(InputError, match="more than 4 volumes"):
        gram_matrix(data, 4, **few)
    with pytest.raises(InputError, match="0 volumes"):
        gram_matrix([], 0, **few)
    with pytest.raises(InputError, match="0 volumes where 3"):
        gram_matrix([], 3, **few)
    with pytest.raises(InputError, match="volume 1 has shape"):
        gram_matrix([data[0], data[1][:, :4]], 2, **few)
    holed = data.copy()
    holed[3, 4, 4, 4] = np.nan
    with pytest.raises(InputError, match="volume 3 holds NaN"):
        gram_matrix(holed, 5, **few)
    with pytest.raises(InputError, match="hold no voxel"):
        gram_matrix(data, 5, scratch=tmp_path, memory_bytes=10)
    monkeypatch.setattr(gram.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match="are free"):
        gram_matrix(data, 5, **few)
    assert not list(tmp_path.iterdir())
