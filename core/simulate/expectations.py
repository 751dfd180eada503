"""Which metric should see which control cohort: the product's self-test as data, for the test and the picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectation:
    """What a defect does to metrics that are measured on the volumes themselves, by their names in metrics.csv.

    A metric *moves* when its value leaves the 95 % interval of the same people without the defect, and *stays* when
    it remains inside. Metrics in neither list may do either.
    """

    moves: tuple[str, ...]
    stays: tuple[str, ...]


EXPECTED: dict[str, Expectation] = {
    "blur": Expectation(moves=("sharpness",), stays=("ms-ssim", "image-mmd")),
    "noise": Expectation(moves=("sharpness",), stays=("ms-ssim", "image-mmd")),
    "collapse": Expectation(moves=("ms-ssim", "image-mmd"), stays=()),
    "shrunken-hippocampus": Expectation(moves=(), stays=("sharpness", "ms-ssim", "image-mmd")),
    "large-ventricles": Expectation(moves=(), stays=("sharpness", "ms-ssim", "image-mmd")),
}
