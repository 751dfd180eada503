"""The atlas labels: known ids, two mirrored sides, inside the template's brain, volumes of a normal adult."""

import csv
from pathlib import Path

import numpy as np
import pytest

from core.volume import FULL, load_labels, template

DATA = Path(__file__).parents[1] / "data"
# Range of a healthy adult in mL (one side); cortex of the averaged template is thicker than a person's.
PLAUSIBLE = {
    2: (180, 260), 4: (5, 12), 5: (0.2, 1), 7: (8, 18), 8: (45, 65), 10: (6.5, 8.5), 11: (3.2, 4.5), 12: (4.2, 5.8),
    13: (1.3, 2.1), 14: (0.7, 2), 15: (1.2, 2.8), 16: (19, 26), 17: (3.5, 4.7), 18: (1.3, 2.5), 26: (0.4, 0.9),
    28: (3, 5),
}  # fmt: skip


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    volume = load_labels(DATA / "atlas_labels.nii.gz")
    assert volume.data.shape == FULL.shape
    assert np.allclose(volume.affine, FULL.affine)
    return volume.data


def test_ids_are_exactly_those_of_the_table_without_the_two_cortex_totals(labels):
    with (DATA / "label_table.csv").open(newline="") as table:
        known = {int(row["id"]) for row in csv.DictReader(table)}
    assert set(np.unique(labels).tolist()) - {0} == known - {0, 3, 42}


def test_right_side_mirrors_the_left(labels):
    mirrored = labels[::-1]
    cortex = labels >= 1000
    assert np.array_equal(cortex, cortex[::-1])
    assert np.array_equal(labels[cortex] % 1000, mirrored[cortex] % 1000)
    for left, right in ((2, 41), (10, 49), (17, 53), (28, 60)):
        assert np.array_equal(labels == left, mirrored == right)
    assert np.argwhere(labels == 17)[:, 0].max() < FULL.shape[0] // 2


def test_volumes_are_those_of_an_adult(labels):
    for label, (low, high) in PLAUSIBLE.items():
        assert low <= (labels == label).sum() / 1000 <= high, label
    assert 1200 <= (labels > 0).sum() / 1000 <= 1600
    parcels = [(labels == k).sum() / 1000 for k in np.unique(labels[labels >= 1000])]
    assert len(parcels) == 68
    assert min(parcels) > 0.8


def test_labels_lie_in_the_brain_and_follow_its_intensities(labels):
    image = template(FULL).data
    assert (image[labels > 0] > -1).mean() > 0.999
    median = {k: np.median(image[labels == k]) for k in (2, 4, 10, 12, 1024)}
    assert median[4] < median[1024] < median[12] < median[2]
    assert median[10] < median[2]
