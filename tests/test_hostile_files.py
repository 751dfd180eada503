"""Broken and malicious files: each is read, or refused with what, where and what to do; quickly, and in little memory.

``make fuzz`` runs this file longer: FUZZ is how many times as many files are tried.
"""

import gzip
import io
import json
import logging
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core import checkpoint
from core.errors import InputError, SynthScopeError
from core.generators.base import read_facts
from core.participants import read_participants
from core.preprocess.scans import read_scan
from core.store import FeatureFile, read_features, write_features
from core.tables import read_cells
from core.volume import HALF, load, load_labels, load_on_grid
from tests import hostile

FUZZ = int(os.environ.get("FUZZ", "1"))
MUTANTS, EXAMPLES = 320 * FUZZ, 60 * FUZZ
KNOWN = (4010,)  # was a finding of a longer run: minus so many frames
MOST_SECONDS, MOST_MEMORY = 5.0, 64e6
FUZZING = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def outcome(read, path: Path) -> str:
    """Read a file that may be broken; "" when it can be read, else the message. Anything else fails the test."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        read(path)
        return ""
    except SynthScopeError as error:
        assert error.what and error.where and error.remedy, f"{path.name}: {error}"
        return str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert time.monotonic() - start < MOST_SECONDS, path.name
        assert peak < MOST_MEMORY, f"{path.name}: {peak / 1e6:.0f} MB"


def test_every_mutant_is_a_volume_or_an_input_error(tmp_path: Path):
    found = {kind: [0, 0] for kind in hostile.KINDS}
    for number in (*range(MUTANTS), *KNOWN):
        kind, content = hostile.mutant(number)
        path = tmp_path / f"mutant-{number}{kind}"
        path.write_bytes(content)
        found[kind][outcome(read_scan if kind == ".nrrd" else load, path) == ""] += 1
        path.unlink()
    # Neither all whole nor all hopeless: the damage reaches what is behind the first check.
    assert all(broken > MUTANTS // 16 for broken, _ in found.values()), found
    assert all(whole for kind, (_, whole) in found.items() if kind != ".nrrd"), found


def test_a_mutant_follows_from_its_number():
    assert all(hostile.mutant(number) == hostile.mutant(number) for number in range(8))


@FUZZING
@given(st.lists(st.tuples(st.integers(0, 367), st.integers(0, 255)), min_size=1, max_size=30), st.booleans())
def test_any_bytes_in_a_nifti_header(tmp_path: Path, changes: list[tuple[int, int]], packed: bool):
    content = bytearray(hostile.nifti())
    for place, value in changes:
        content[place] = value
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    for read in (load, load_labels, lambda p: load_on_grid(p, HALF, rule="maximum")):
        outcome(read, path)


@FUZZING
@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=9), st.integers(0, 2**16), st.binary())
def test_any_damage_to_a_gzip_stream(tmp_path: Path, changes: list[tuple[int, int]], length: int, tail: bytes):
    content = bytearray(gzip.compress(hostile.nifti()))
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "x.nii.gz"
    path.write_bytes(bytes(content[: length % (2 * len(content))]) + tail)
    outcome(load, path)


@FUZZING
@given(
    st.binary(max_size=700), st.sampled_from((*hostile.KINDS, ".mgh", ".safetensors", ".pt", ".npz", ".csv", ".tsv"))
)
def test_any_bytes_under_any_name(tmp_path: Path, content: bytes, kind: str):
    path = tmp_path / f"x{kind}"
    path.write_bytes(content)
    readers = {".safetensors": checkpoint.read, ".pt": checkpoint.read, ".npz": read_features, ".csv": read_cells}
    readers |= {".nrrd": read_scan, ".tsv": read_participants}
    outcome(readers.get(kind, load), path)
    if kind == ".safetensors":
        read_facts(path)


def nifti_header(shape: tuple[int, ...], kind: type = np.float64, **fields: float) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_sform(np.eye(4), 1)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (nifti_header((30000, 30000, 30000)), "absurd shape"),
        (nifti_header((-5, 10, 10)), "absurd shape|not a readable"),
        (nifti_header((0, 10, 10)), "absurd shape"),
        (nifti_header((640, 640, 640)), "promises 2,097,152,352 bytes"),
        (nifti_header((9, 9, 9), vox_offset=1e9), "at byte 1000000000"),
        (nifti_header((9, 9, 9), vox_offset=-1e9), "too low|at byte"),
        (nifti_header((9, 9, 9), vox_offset=float("nan")), "not a readable"),
        (nifti_header((9, 9, 9), vox_offset=5000.0), "cannot be read to the end"),
        (nifti_header((9, 9, 9), datatype=999), "not a readable"),
        (nifti_header((9, 9, 9), datatype=32), "complex64"),
        (nifti_header((9, 9, 9), datatype=128), "not single numbers"),
        (nifti_header((9, 9, 9), srow_x=1e30), "affine is singular, not finite or absurd"),
        (nifti_header((9, 9, 9), srow_x=0), "affine is singular"),
        (nifti_header((9, 9, 9, 9)), "3D"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_lie_are_refused_by_name(tmp_path: Path, header: bytes, what: str, packed: bool):
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    path.write_bytes(gzip.compress(header) if packed else header)
    with pytest.raises(InputError, match=what) as caught:
        load(path)
    assert caught.value.where == str(path) and caught.value.remedy


def gzip_bomb(header: bytes, blocks: int = 64) -> bytes:
    """A small file of ``blocks`` × 64 MB: one member after the other, all the same."""
    return gzip.compress(header) + gzip.compress(bytes(2**26)) * blocks


def npz_header(shape: tuple[int, ...], kind: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": kind})
    return buffer.getvalue()


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def safetensors_file(header: dict | bytes, length: int | None = None, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], offsets: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


class Bomb:
    def __reduce__(self):
        return (bytearray, (2**36,))


def bombs(folder: Path) -> dict[str, str]:
    """Files that would take many gigabytes; name to the reader."""
    shape = (640, 640, 640)
    mgh = nib.MGHImage(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_bytes()[:284]
    mgh = mgh[:4] + struct.pack(">3i", *shape) + mgh[16:]
    deflated = zipped({"features.npy": npz_header((2**17, 2**13), "<f4") + bytes(2**29)}, zipfile.ZIP_DEFLATED)
    torch.save({"w": torch.zeros(1).expand(2**17, 2**17)}, folder / "expanded.pt")
    torch.save({"w": Bomb()}, folder / "bytearray.pt")
    torch.save({"w": Bomb()}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    files = {
        "bomb.nii.gz": gzip_bomb(nifti_header(shape)),
        "offset.nii.gz": gzip_bomb(nifti_header((9, 9, 9), vox_offset=2.0**31)),
        "extension.nii.gz": gzip_bomb(
            nifti_header((9, 9, 9), vox_offset=2.0**31)[:348] + b"\1\0\0\0" + struct.pack("<ii", -(2**31), 6)
        ),
        "bomb.mgz": gzip_bomb(mgh),
        "bomb.nrrd": b"NRRD0004\ntype: double\ndimension: 3\nspace: RAS\nsizes: 640 640 640\nencoding: gzip\nendian: little\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n" + gzip_bomb(b""),
        "shape.npz": zipped({"features.npy": npz_header((2**40, 2**10), "<f4")}),
        "text.npz": zipped({"cases.npy": npz_header((3,), "<U2147483647")}),
        "deflated.npz": deflated,
        "deflated.pt": zipped({"archive/data.pkl": bytes(2**29), "archive/version": b"3"}, zipfile.ZIP_DEFLATED),
        "length.safetensors": safetensors_file({}, 2**62),
        "offsets.safetensors": safetensors_file({"w": tensor([2**40], [0, 2**42])}),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    readers = {".npz": "features", ".pt": "weights", ".pth": "weights", ".safetensors": "weights", ".nrrd": "scan"}
    return {path.name: readers.get(path.suffix, "volume") for path in sorted(folder.iterdir())}


CHILD = """
import json, resource, sys, time
from pathlib import Path
from core import checkpoint
from core.errors import SynthScopeError
from core.preprocess.scans import read_scan
from core.store import read_features
from core.volume import load
readers = {"features": read_features, "weights": checkpoint.read, "scan": read_scan, "volume": load}
pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, kind in json.loads(sys.argv[2]).items():
    start = time.monotonic()
    try:
        readers[kind](Path(sys.argv[1]) / name)
        said[name] = "read"
    except SynthScopeError as error:
        said[name] = str(error)
    except BaseException as error:
        said[name] = f"escaped: {error!r}"
    if time.monotonic() - start > 5:
        said[name] = f"slow: {said[name]}"
print(json.dumps([said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_bombs_are_refused_within_little_memory(tmp_path: Path):
    files = bombs(tmp_path)
    assert all((tmp_path / name).stat().st_size < 2**23 for name in files)
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path), json.dumps(files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said, kilobytes = json.loads(done.stdout.splitlines()[-1])
    wrong = {
        name: text for name, text in said.items() if str(tmp_path / name) not in text or text.startswith("escaped")
    }
    assert not wrong
    assert not [text for text in said.values() if text.startswith("slow")]
    assert kilobytes < 100e3, f"the files took {kilobytes / 1e3:.0f} MB"


def test_a_large_image_that_shrinks_well_is_still_read(tmp_path: Path):
    data = np.zeros((200, 200, 200), np.float32)
    data[60:140, 60:140, 60:140] = np.random.default_rng(0).normal(size=(80, 80, 80))
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "brain.nii.gz")
    np.testing.assert_array_equal(load(tmp_path / "brain.nii.gz").data, data)


# -- pickles, archives, safetensors ------------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def pickles(folder: Path, target: Path) -> list[Path]:
    """Files that run code in readers that unpickle."""
    payload = Payload(target)
    objects = np.array([payload, payload], dtype=object)
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": payload}, folder / "new.pt")
    torch.save({"w": torch.ones(2), "x": payload}, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.save(folder / "array.npy", objects, allow_pickle=True)
    np.savez(folder / "arrays.npz", features=objects, cases=np.array(["a", "b"]))
    np.savez(folder / "cases.npz", features=np.ones((2, 3)), cases=objects)
    (folder / "renamed.safetensors").write_bytes((folder / "new.pt").read_bytes())
    (folder / "renamed.npz").write_bytes((folder / "old.pth").read_bytes())
    return sorted(folder.iterdir())


def test_no_pickle_is_ever_run(tmp_path: Path):
    target, folder = tmp_path / "ran", tmp_path / "files"
    folder.mkdir()
    files = pickles(folder, target)
    assert len(files) == 7
    for path in files:
        for read in (checkpoint.read, read_features, load, read_scan):
            with pytest.raises(SynthScopeError) as caught:
                read(path)
            assert caught.value.remedy
            assert "weights_only" not in str(caught.value), "advice to run the pickle"
        if path.suffix in (".pt", ".pth"):
            with pytest.raises(SynthScopeError):
                checkpoint.read_settings(path)
    read_facts(folder / "renamed.safetensors")
    assert not target.exists()
    torch.load(folder / "new.pt", weights_only=False)  # the payload does work: the test is not idle
    assert target.exists()


def test_an_unsafe_checkpoint_says_why(tmp_path: Path):
    torch.save({"w": Payload(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="could run code, so it is refused"):
        checkpoint.read(tmp_path / "x.pt")


TWO = {"a": tensor([2], [0, 8]), "b": tensor([2], [8, 16])}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file(TWO, 2**63 - 1, bytes(16)),
        safetensors_file(TWO, 2**64 - 1, bytes(16)),
        safetensors_file(TWO, 0, bytes(16)),
        safetensors_file(TWO | {"b": tensor([2], [4, 12])}, data=bytes(12)),
        safetensors_file(TWO | {"b": tensor([2], [-8, 0])}, data=bytes(16)),
        safetensors_file(TWO | {"b": tensor([-2], [8, 16])}, data=bytes(16)),
        safetensors_file(TWO | {"b": tensor([2], [16, 8])}, data=bytes(16)),
        safetensors_file(TWO | {"b": tensor([2**62, 2**62], [8, 16])}, data=bytes(16)),
        safetensors_file(TWO | {"b": {"dtype": "nonsense", "shape": [2], "data_offsets": [8, 16]}}, data=bytes(16)),
        safetensors_file(TWO),
        safetensors_file(b"[" * 100_000),
        safetensors_file(b'{"a": 1' + b"\xff" * 9),
        safetensors_file({}),
        b"",
        b"\0" * 7,
    ],
)
def test_broken_safetensors_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        checkpoint.read(path)
    assert caught.value.where == str(path) and caught.value.remedy
    assert read_facts(path) == {}


def test_mutants_of_weights_and_features_are_read_or_refused(tmp_path: Path):
    weights = {"a.weight": torch.randn(4, 3), "b": torch.randn(7)}
    save_file(weights, tmp_path / "a.safetensors", {"facts": "{}"})
    torch.save(weights, tmp_path / "b.pt")
    torch.save(weights, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    write_features(FeatureFile(np.ones((5, 3), np.float32), tuple("abcde"), "e", "w"), tmp_path / "d.npz")
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for number in range(50 * FUZZ):
            rng = np.random.default_rng(number)
            content = bytearray(whole)
            for damage in rng.choice([hostile.flip_bits, hostile.truncate, hostile.swap, hostile.cut_out], 2):
                if content:
                    damage(content, rng)
            path.write_bytes(content)
            outcome(read_features if path.suffix == ".npz" else checkpoint.read, path)
            if path.suffix == ".safetensors":
                read_facts(path)


# -- other readers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.raw", "LIST", "no.raw", "%03d.raw 1 9 1", "link.raw"])
def test_a_detached_header_cannot_point_at_other_files(tmp_path: Path, name: str):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "x.raw").write_bytes(bytes(2 * 64**3))
    (folder / "link.raw").symlink_to(tmp_path / "x.raw")
    for header in ("x.nhdr", "x.nrrd"):
        (folder / header).write_bytes(hostile.nrrd(f"data file: {name}\n"))
        with pytest.raises(InputError, match="elsewhere than in one file beside the header"):
            read_scan(folder / header)


def test_a_detached_header_beside_its_voxels_is_read(tmp_path: Path):
    header, _, voxels = hostile.nrrd("data file: x.raw\n").partition(b"\n\n")
    (tmp_path / "x.nhdr").write_bytes(header + b"\n\n")
    (tmp_path / "x.raw").write_bytes(voxels)
    assert read_scan(tmp_path / "x.nhdr").data.shape == (64, 64, 64)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\0", b"", b"participant_id\tage\na\t1\t2\t3\n", b'"' * 9, b"a" * 200_000]
)
def test_broken_participants_are_explained(tmp_path: Path, content: bytes):
    (tmp_path / "p.tsv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_participants(tmp_path / "p.tsv")
    assert caught.value.remedy and len(str(caught.value)) < 300_000
