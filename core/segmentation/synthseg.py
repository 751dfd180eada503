"""The SynthSeg+ engine: runs an installed ``mri_synthseg`` or ``SynthSeg_predict.py`` on folders of scans.

Billot et al., Medical Image Analysis 86 (2023), doi:10.1016/j.media.2023.102789, and, for --robust, --parc and --qc,
PNAS 120 (2023), doi:10.1073/pnas.2216399120.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import InputError, JobFailed, MissingAsset, SynthScopeError
from core.segmentation import QC_GROUPS, Program, Segmentation
from core.segmentation.atlas import check
from core.segmentation.outside import Run, available_memory, run
from core.segmentation.synthseg_output import read_scan, read_table, volume_names
from core.volume import Volume, save

PATIENCE = 30 * 60.0  # seconds for one scan, the start included; a scan takes about two minutes on one core
HOPELESS = 2  # scans tried again alone, all in vain, after a batch without any result: the program itself is broken
STEP, LEAST = 32, 128  # SynthSeg pads every side to a multiple of 32 voxels of 1 mm, and to 128 at least
# Counted from the published architecture, not measured; float32 channels held at once at the end of the parcellation:
# 33 posteriors, the last 24 features, and 69 parcels three times (raw, softmax, smoothed).
BYTES_A_VOXEL = 4 * (33 + 24 + 3 * 69)
BYTES_AT_START = 2 * 1024**3  # the interpreter, TensorFlow and the weights
STAMP = "build-stamp.txt"
GB = 1e9
INSTALL = (
    "Install FreeSurfer 7.4 or newer (surfer.nmr.mgh.harvard.edu), or SynthSeg with its weights "
    "(github.com/BBillot/SynthSeg), and set SYNTHSCOPE_SYNTHSEG to mri_synthseg, or to "
    '"PYTHON /path/to/SynthSeg_predict.py" with the Python that has TensorFlow. Without it, tables that SynthSeg '
    "wrote elsewhere can be imported: volumes and qc of each cohort in study.toml."
)
IMPORT = "Or segment elsewhere and import the tables: volumes and qc of each cohort in study.toml."
_SCAN_ERROR = re.compile(r"the following problem occur+ed with image (.+?) :\n(.*?)resuming program execution", re.S)


@dataclass(frozen=True)
class SynthSeg:
    """Segments batches of volumes with an installed SynthSeg.

    Parameters
    ----------
    program : Program
        Where it is and what it may use.
    robust : bool
        The network for poor scans (``--robust``), as in the paper, or the standard one.
    patience : float
        Seconds without a new result after which the program counts as hanging.

    Raises
    ------
    MissingAsset
        When the program is not installed.
    """

    program: Program
    robust: bool
    patience: float = PATIENCE

    def __post_init__(self) -> None:
        find_program(self.program)

    def __call__(self, volumes: Sequence[Volume], folder: Path) -> Iterator[Segmentation | SynthScopeError]:
        """Segment a batch; a scan that fails in it is tried once more alone.

        Parameters
        ----------
        volumes : sequence of Volume
            Skull-stripped T1w on an atlas grid, in [-1, 1].
        folder : Path
            Empty folder for the program's files.

        Yields
        ------
        Segmentation or SynthScopeError
            One a volume, in their order.

        Raises
        ------
        JobFailed
            Too little memory for a scan.
        MissingAsset
            The program does not start, or lacks a library, its weights, or an option.
        """
        errors = {index: error for index, volume in enumerate(volumes) if (error := _unusable(volume))}
        good = [index for index in range(len(volumes)) if index not in errors]
        results: dict[int, Segmentation | SynthScopeError] = dict(errors)
        if good:
            check_memory(volumes[good[0]], self.program.device)
            batch = self._run([volumes[index] for index in good], folder / "batch")
            results |= {index: batch.result(place, volumes[index]) for place, index in enumerate(good)}
        works = any(isinstance(result, Segmentation) for result in results.values())
        tried = 0
        for index, volume in enumerate(volumes):
            result = results.pop(index)
            if index in good and not isinstance(result, Segmentation) and len(good) > 1 and (works or tried < HOPELESS):
                tried += 1
                result = self._run([volume], folder / f"alone-{index:04d}").result(0, volume)
                works = works or isinstance(result, Segmentation)
            yield result

    def _run(self, volumes: Sequence[Volume], folder: Path) -> Batch:
        scans, output = folder / "scans", folder / "output"
        scans.mkdir(parents=True)
        output.mkdir()
        for index, volume in enumerate(volumes):
            # Own names: SynthSeg cuts names at ".nii". Background 0, as in a skull-stripped scan.
            save(Volume(volume.data - volume.data.min(), volume.affine), scans / f"{_name(index)}.nii.gz")
        threads = str(self.program.threads)
        start = find_program(self.program)
        command = [*_environment(start, self.program), *start, "--i", str(scans)]
        command += ["--o", str(output / "labels"), "--vol", str(output / "volumes.csv")]
        command += ["--qc", str(output / "qc.csv"), "--parc", "--threads", threads]
        command += ["--robust"] * self.robust + ["--cpu"] * (not self.program.device.startswith("cuda"))
        try:
            ended = run(command, log=folder / "log.txt", watch=output, patience=self.patience)
        except OSError as error:
            raise MissingAsset(f"cannot be started ({error.strerror}).", self.program.command, INSTALL) from error
        _check_start(ended, self.program.command)
        return Batch(ended, output, self.patience)


@dataclass(frozen=True)
class Batch:
    """One call of the program: how it ended and where its files are."""

    ended: Run
    output: Path
    patience: float

    def result(self, index: int, volume: Volume) -> Segmentation | SynthScopeError:
        """Read the scan written as number ``index``."""
        name = _name(index)
        try:
            volumes = read_table(self.output / "volumes.csv", volume_names())
            qc = read_table(self.output / "qc.csv", QC_GROUPS)
            return read_scan(self.output / "labels" / f"{name}_synthseg.nii.gz", volumes, qc, name, volume)
        except InputError as error:
            reason = self._reason(name)
            what = f"SynthSeg gave no result: {reason or error.what}"
            return InputError(what, volume.case_id, "Look at the volume in the viewer; evaluate again to retry.")

    def _reason(self, name: str) -> str:
        """Say in the program's own words why a scan failed, or how the program ended."""
        for path, traceback in _SCAN_ERROR.findall(self.ended.text):
            if Path(path.strip()).name.startswith(f"{name}."):
                return _last_line(traceback)
        if self.ended.code is None:
            return f"no progress for {self.patience / 60:.3g} minutes, so it was stopped."
        if self.ended.killed:
            return "the system killed the program, most likely because memory ran out."
        if self.ended.code and not self.ended.text.count("the following problem occur"):
            return f"it ended with exit status {self.ended.code}: {_last_line(self.ended.text)}"
        return ""


def find_program(program: Program) -> list[str]:
    """Return the command line that starts SynthSeg.

    Raises
    ------
    MissingAsset
        With how to install it, when it is not there.
    """
    if not program.command.strip():
        raise MissingAsset("SynthSeg is not installed.", "mri_synthseg", INSTALL)
    whole = Path(program.command).expanduser()
    parts = [str(whole)] if whole.is_file() else shlex.split(program.command)
    if len(parts) == 1 and parts[0].endswith(".py"):
        parts.insert(0, "python3")
    scripts = [part for part in parts[1:] if part.endswith(".py")]
    absent = [part for part in scripts if not Path(part).is_file()]
    if shutil.which(parts[0]) is None:
        absent.insert(0, parts[0])
    if absent:
        raise MissingAsset(f"there is no such program: {absent[0]}.", "SYNTHSCOPE_SYNTHSEG", INSTALL)
    return parts


def installed_version(program: Program) -> str:
    """Return FreeSurfer's build stamp, or the name and hash of the script; "" when the program is not there."""
    try:
        parts = find_program(program)
    except MissingAsset:
        return ""
    script = Path(shutil.which(parts[-1]) or parts[-1])
    if home := _freesurfer_home(script):
        return (home / STAMP).read_text(encoding="utf-8", errors="replace").strip()
    return f"{script.name} {hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"


def needed_memory(volume: Volume) -> int:
    """Estimate the bytes SynthSeg needs for one scan; it takes scans one after the other, so a batch needs no more."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    sides = [
        max(LEAST, STEP * math.ceil(n * mm / STEP)) for n, mm in zip(volume.data.shape, spacing.tolist(), strict=True)
    ]
    return math.prod(sides) * BYTES_A_VOXEL + BYTES_AT_START


def check_memory(volume: Volume, device: str) -> None:
    """Refuse to start what the system would kill.

    Raises
    ------
    JobFailed
        With what is needed and what there is.
    """
    needed, free, kind = needed_memory(volume), available_memory(), "memory"
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            free, kind = min((free, kind), (torch.cuda.mem_get_info(device)[0], "graphics memory"))
    if free < needed:
        raise JobFailed(
            f"a scan needs about {needed / GB:.1f} GB of {kind}, {free / GB:.1f} GB are free.",
            "SynthSeg",
            f"End other programs, or run on a larger machine. {IMPORT}",
        )


def _unusable(volume: Volume) -> InputError | None:
    try:
        check(volume)
    except InputError as error:
        return error
    return None


def _check_start(ended: Run, command: str) -> None:
    """Raise where trying again cannot help: the program lacks something."""
    if not ended.code:
        return
    last = _last_line(ended.text)
    if "unrecognized arguments" in ended.text:
        raise MissingAsset(f"this version lacks an option ({last}).", command, f"It is too old. {INSTALL}")
    missing = ("ModuleNotFoundError", "ImportError", "FREESURFER_HOME is not set", "model path does not exist")
    if any(text in ended.text for text in missing) and "the following problem occur" not in ended.text:
        raise MissingAsset(f"does not start ({last}).", command, INSTALL)


def _environment(command: Sequence[str], program: Program) -> list[str]:
    """Return an ``env`` prefix: FreeSurfer's home when it was not sourced, the threads, the graphics card."""
    home = _freesurfer_home(Path(shutil.which(command[-1]) or command[-1]))
    settings = [f"FREESURFER_HOME={home}"] if home else []
    _, _, card = program.device.partition(":")
    settings += [f"CUDA_VISIBLE_DEVICES={card}"] if card else []
    return ["env", f"OMP_NUM_THREADS={program.threads}", *settings]


def _freesurfer_home(script: Path) -> Path | None:
    """Return the installation a program belongs to: it lies in its bin folder, or is linked from elsewhere."""
    homes = (script.absolute().parent.parent, script.resolve().parent.parent)
    return next((home for home in homes if (home / STAMP).is_file()), None)


def _name(index: int) -> str:
    return f"scan-{index:04d}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing."
