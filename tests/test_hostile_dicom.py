"""Broken DICOM series. Their parser is C++: it works in a process that may take little memory and may end.

``make fuzz`` tries FUZZ times as many.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from core.errors import InputError
from core.preprocess.dicom import limit_memory, read_here
from core.preprocess.scans import read_scan
from tests import hostile
from tests.cluster import ROOT
from tests.test_preprocess import write_dicom

SERIES = 150 * int(os.environ.get("FUZZ", "1"))
GREEDY = (1, 8, 61)  # asked for 2.6, 0.5 and 0.8 GB
HELD = """
import json, resource, sys
from core.errors import InputError
from core.preprocess.scans import read_scan
try:
    read_scan(sys.argv[1])
except InputError as error:
    print(json.dumps([[error.what, error.where, error.remedy], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom") / "whole"
    stack = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 1000, (64, 64, 64)).astype(np.int16))
    write_dicom(stack, folder, "1.2.826.0.1.3680043.2.1125.7")
    return folder


def write_series(number: int, whole: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, content in hostile.broken_series(number, {p.name: p.read_bytes() for p in whole.iterdir()}).items():
        (target / name).write_bytes(content)


def test_every_broken_series_is_a_volume_or_an_input_error(whole: Path, tmp_path: Path):
    messages: list[str] = []
    while len(messages) < SERIES:  # a child that ends is followed by one that begins after what ended it
        numbers = map(str, (len(messages), SERIES))
        command = [sys.executable, "-m", "tests.test_hostile_dicom", str(whole), str(tmp_path / "broken"), *numbers]
        child = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        messages += [json.loads(line) for line in child.stdout.splitlines()]
        if len(messages) < SERIES:
            write_series(len(messages), whole, tmp_path / "ends")
            with pytest.raises(InputError, match="the reader ended") as caught:
                read_scan(tmp_path / "ends")
            messages.append(str(caught.value))
    read = messages.count("")
    assert SERIES / 30 < read < SERIES / 2, f"{read} of {SERIES} could be read"
    assert len({message.partition(": ")[2][:40] for message in messages}) > 4  # the damage reaches several checks


@pytest.mark.parametrize("number", GREEDY)
def test_what_asks_for_too_much_memory_is_refused_or_read_in_little(number: int, whole: Path, tmp_path: Path):
    write_series(number, whole, tmp_path / "greedy")
    child = subprocess.run(
        [sys.executable, "-c", HELD, str(tmp_path / "greedy")], cwd=ROOT, capture_output=True, check=True
    )
    (what, where, remedy), kilobytes = json.loads(child.stdout)
    assert what and where and remedy
    assert kilobytes < 1e6


def _read_all(whole: Path, target: Path, first: int, last: int) -> None:
    """Read broken series as the product's own process does, writing the message of each as a line."""
    write_series(0, whole, target)
    limit_memory(target)
    for number in range(first, last):
        write_series(number, whole, target)
        message = ""
        try:
            read_here(target)
        except InputError as error:
            message = str(error)
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _read_all(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
