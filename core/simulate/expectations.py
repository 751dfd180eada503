"""Which measure should see which control cohort: the product's self-test as data, for the test and the picture."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_METRICS = ("sharpness", "ms-ssim", "image-mmd")
REGIONS = ("hippocampus", "lateral ventricle")
MEASURES = (*IMAGE_METRICS, *REGIONS, "spread", "asymmetry", "copies")


@dataclass(frozen=True)
class Expectation:
    """What a defect does to `MEASURES`.

    Metrics of volumes go by their names in metrics.csv; a region stands for its effect size, ``spread`` for the median
    log spread ratio of the regions, ``asymmetry`` for the effect size of the most asymmetric region's index, ``copies``
    for the share of the copy check. A measure *moves* when its value leaves the 95 % interval of the same people
    without the defect, and *stays* when it remains inside; in neither list it may do either.
    """

    moves: tuple[str, ...]
    stays: tuple[str, ...]


def _only(*moves: str, either: tuple[str, ...] = ()) -> Expectation:
    return Expectation(moves, tuple(name for name in MEASURES if name not in (*moves, *either)))


EXPECTED: dict[str, Expectation] = {
    "blur": _only("sharpness"),
    "noise": _only("sharpness"),
    # Brains that are all alike share their nearest neighbour, so the copy check says 0 or 1 by chance; and with less
    # spread the same gap is a larger d.
    "collapse": _only("ms-ssim", "image-mmd", "spread", either=("sharpness", *REGIONS, "asymmetry", "copies")),
    "shrunken-hippocampus": _only("hippocampus"),
    "large-ventricles": _only("lateral ventricle"),
    "background-artefact": _only(either=("sharpness",)),  # no measure is known to see it
    "left-right-flip": _only("asymmetry"),
    "memorised": Expectation(("copies",), ()),  # other people than the cohort it is compared with
}
