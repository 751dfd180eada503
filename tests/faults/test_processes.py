"""Processes that end or fall silent in the middle of a run, at a random moment."""

import random

import pytest

from tests.faults.scene import SHORT, Scene


@pytest.mark.slow
@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.__name__)
def test_a_run_survives(fault, whole, tmp_path):
    data, expected, count = whole
    scene = Scene(data, tmp_path, expected)
    try:
        fault(scene, random.randint(4, count - 5), tmp_path / "elsewhere")
        scene.check()
    finally:
        scene.close()
