"""Reading a DICOM series in a process of its own, which may take so much memory and no more.

The parser believes the lengths it finds in a file: four broken bytes make it ask for gigabytes, others end the process.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from core.errors import InputError
from core.volume import check_bytes, check_extent

SPARE_BYTES, BYTES_PER_BYTE = 2**29, 12  # compressed slices inflate; the volume is held more than once
MOST_SECONDS = 600
_T = TypeVar("_T")


def is_dicom(path: Path) -> bool:
    """Tell whether a file is one of DICOM; the index of a disk is not."""
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def read_series(folder: Path) -> sitk.Image:
    """Read the one series of a folder.

    Raises
    ------
    InputError
        No or several series, slices that are missing or differ, and whatever the parser cannot read, dies of or takes
        more memory for than the files explain.
    """
    if not any(is_dicom(path) for path in folder.iterdir()):
        what = "the folder holds no DICOM files."
        raise InputError(what, str(folder), "Give the folder that directly holds the series.")
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "series.nrrd"
        command = [sys.executable, "-m", "core.preprocess.dicom", str(folder.resolve()), str(out)]
        try:
            done = subprocess.run(
                command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                timeout=MOST_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise _unreadable(folder, f"the reader was not done after {MOST_SECONDS} s") from None
        if done.returncode:
            try:
                what, remedy = json.loads(done.stdout)
            except ValueError:
                raise _unreadable(folder, "the reader ended, or asked for too much memory") from None
            raise InputError(what, str(folder), remedy)
        return read_with(lambda: sitk.ReadImage(str(out)), folder)


def read_with(read: Callable[[], _T], path: Path) -> _T:
    """Call a function of SimpleITK; what it raises becomes an InputError without quotations from the file."""
    try:
        return read()
    except (RuntimeError, MemoryError) as error:
        # What is quoted comes from the header, where names may stand.
        reason = re.sub(r"([\"'|]).*?\1", "…", " ".join(str(error).split()))[-160:]
        raise _unreadable(path, reason) from error


def check_promise(reader: sitk.ImageFileReader, files: int, held: int, path: Path) -> None:
    """Refuse an absurd or impossible size before memory is taken for it."""
    size = (*reader.GetSize()[:-1], reader.GetSize()[-1] * files)
    check_extent(size, path)
    voxels = int(np.prod(size, dtype=np.int64)) * reader.GetNumberOfComponents()
    pixel = read_with(lambda: sitk.Image([1] * 2, reader.GetPixelID()), path)  # of no known type, at times
    check_bytes(voxels * pixel.GetSizeOfPixelComponent(), held, path, packed=True)


def read_here(folder: Path) -> sitk.Image:
    """Read the one series of a folder in this process; see `read_series`."""
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series}
        listed = "; ".join(f"{uid} ({len(names)} files, first {Path(names[0]).name})" for uid, names in files.items())
        what = f"the folder holds {len(series)} DICOM series: {listed}." if series else "no readable DICOM series."
        raise InputError(what, str(folder), "Put the files of the T1w series alone in a folder and give that folder.")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    first = sitk.ImageFileReader()
    first.SetFileName(names[0])
    read_with(first.ReadImageInformation, folder)
    check_promise(first, len(names), sum(Path(name).stat().st_size for name in names), folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    image = read_with(reader.Execute, folder)
    key, count = "0020|0032", len(reader.GetFileNames())
    if count > 2 and all(reader.HasMetaDataKey(i, key) for i in range(count)):
        _check_spacing([reader.GetMetaData(i, key) for i in range(count)], folder)
    return image


def limit_memory(folder: Path) -> None:
    """Let this process take what the files of a folder explain; where the system has no such limit, any."""
    if sys.platform != "linux":
        return
    import resource

    held = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = now + SPARE_BYTES + BYTES_PER_BYTE * held
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _check_spacing(positions: list[str], folder: Path) -> None:
    try:
        places = np.array([[float(value) for value in position.split("\\")] for position in positions])
        gaps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    except ValueError as error:  # no numbers, or not as many everywhere
        raise _unreadable(folder, "the positions of the slices are not three numbers each") from error
    if not gaps.max() - gaps.min() <= 0.1 * np.median(gaps):
        what = f"the slices are not evenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm apart, {len(places)} files)."
        raise InputError(what, str(folder), "Slices are missing or doubled: export the series again.")


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"it cannot be read ({reason}).", str(path), "Export it again, or convert it.")


def _main(folder: Path, out: Path) -> int:
    limit_memory(folder)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        sitk.WriteImage(read_here(folder), str(out))
    except InputError as error:
        sys.stdout.write(json.dumps([error.what, error.remedy]))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
