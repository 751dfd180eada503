"""Files made to break a reader: every one follows from its number."""

import gzip
import struct
from collections.abc import Callable

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 8)
SECRET = b"DOE^JANE"  # a patient's name, wherever a header has room for text
KINDS = (".nii", ".nii.gz", ".mgz", ".nrrd")
NASTY = (0, 1, -1, 2, 7, 8, 255, 1023, 4096, 30000, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**40)
NASTY_FLOATS = (0.0, -1.0, 351.0, 352.0, 1e9, 3e38, -3e38, float("nan"), float("inf"), -float("inf"), 1e-40)
# Offset, format and number of the NIfTI-1 fields that decide what is read.
FIELDS = (
    *((0, "<i", 1), (40, "<h", 8), (70, "<h", 1), (72, "<h", 1), (76, "<f", 8), (108, "<f", 1), (112, "<f", 2)),
    *((252, "<h", 2), (256, "<f", 6), (280, "<f", 12), (344, "4s", 1)),
)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)


def nifti(data: np.ndarray | None = None, affine: np.ndarray | None = None) -> bytes:
    """A NIfTI-1 file with a name in every text field and in an extension."""
    image = nib.Nifti1Image(voxels() if data is None else data, np.eye(4) if affine is None else affine)
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = SECRET
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET * 4))
    return image.to_bytes()


def nrrd(fields: str = "") -> bytes:
    data = np.random.default_rng(0).integers(0, 1000, (64, 64, 64))  # smaller ones are no scans
    header = (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {' '.join(map(str, data.shape))}\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: (0,0,0)\n{fields}patient:={SECRET.decode()}\n\n"
    )
    return header.encode() + data.astype("<i2").tobytes(order="F")


def mgh() -> bytes:
    return nib.MGHImage(voxels(), np.eye(4)).to_bytes()


def mutant(number: int) -> tuple[str, bytes]:
    """Suffix and content of one broken file."""
    rng = np.random.default_rng(number)
    kind = KINDS[number % len(KINDS)]
    content = bytearray({".mgz": mgh, ".nrrd": nrrd}.get(kind, nifti)())
    for _ in range(int(rng.integers(1, 4))):
        DAMAGE[int(rng.integers(len(DAMAGE)))](content, rng)
    packed = bytes(content)
    if kind in (".nii.gz", ".mgz"):
        packed = gzip.compress(packed, mtime=0)
        if rng.random() < 0.4:
            broken = bytearray(packed)
            GZ_DAMAGE[int(rng.integers(len(GZ_DAMAGE)))](broken, rng)
            packed = bytes(broken)
    return kind, packed


def flip_bits(content: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, min(len(content), 400), int(rng.integers(1, 9))):
        content[place] ^= 1 << int(rng.integers(8))


def truncate(content: bytearray, rng: np.random.Generator) -> None:
    del content[int(rng.integers(0, len(content))) :]


def swap(content: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.choice([2, 4, 8, 16]))
    if len(content) > 3 * size:
        a, b = (int(n) for n in rng.integers(0, min(len(content), 400) - size, 2))
        content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def set_field(content: bytearray, rng: np.random.Generator) -> None:
    """Put a nasty number where the header says how much there is to read, and how."""
    if content[:4] == b"NRRD":
        key = str(rng.choice(["sizes", "dimension", "type", "encoding", "space directions", "data file", "endian"]))
        value = str(rng.choice([*map(str, NASTY), "double", "gzip", "/etc/passwd", "30000 30000 30000", "640 640 640"]))
        lines = bytes(content).split(b"\n")
        place = next((i for i, line in enumerate(lines) if line.startswith(key.encode())), 1)
        lines[place : place + (key != "data file")] = [f"{key}: {value}".encode()]
        content[:] = b"\n".join(lines)
        return
    if content[:4] == b"\0\0\0\x01":  # MGH, big-endian: version, four sizes, type, degrees of freedom
        place, pattern, value = 4 * int(rng.integers(0, 7)), ">i", int(rng.choice(NASTY))
    else:
        start, pattern, count = FIELDS[int(rng.integers(len(FIELDS)))]
        place = start + int(rng.integers(count)) * struct.calcsize(pattern)
        value = rng.choice(NASTY_FLOATS) if "f" in pattern else int(rng.choice(NASTY))
    if pattern == "4s":
        packed = rng.bytes(4)
    elif "f" in pattern:
        packed = struct.pack(pattern, value)
    else:
        size = struct.calcsize(pattern)
        packed = (int(value) & (256**size - 1)).to_bytes(size, "big" if ">" in pattern else "little")
    content[place : place + len(packed)] = packed


def break_extension(content: bytearray, rng: np.random.Generator) -> None:
    """Say that extensions follow the header, of a nonsensical size."""
    content[348:352] = b"\x01\0\0\0"
    content[352:360] = struct.pack("<ii", int(rng.choice([-1, 0, 7, 8, 2**31 - 16, -(2**31)])), 6)
    content[108:112] = struct.pack("<f", float(rng.choice([360.0, 384.0, 2.0**31])))


def cut_out(content: bytearray, rng: np.random.Generator) -> None:
    start = int(rng.integers(0, max(1, len(content))))
    del content[start : start + int(rng.integers(1, 200))]


def append_rubbish(content: bytearray, rng: np.random.Generator) -> None:
    content.extend(rng.bytes(int(rng.integers(1, 200))))


def flip_anywhere(content: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(0, len(content), int(rng.integers(1, 9))):
        content[place] ^= 1 << int(rng.integers(8))


def repeat(content: bytearray, rng: np.random.Generator) -> None:
    content.extend(bytes(content))


Damage = Callable[[bytearray, np.random.Generator], None]
DAMAGE: tuple[Damage, ...] = (flip_bits, truncate, swap, set_field, set_field, set_field, break_extension, cut_out)
GZ_DAMAGE: tuple[Damage, ...] = (flip_anywhere, truncate, append_rubbish, cut_out, repeat)


# Elements of a DICOM slice that decide what is read: group, element.
ELEMENTS = (
    *((0x0028, e) for e in (0x0002, 0x0004, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103)),
    *((0x0020, e) for e in (0x000D, 0x000E, 0x0013, 0x0032, 0x0037)),
    *((0x0028, 0x1052), (0x0028, 0x1053), (0x0018, 0x0050), (0x0002, 0x0010), (0x0002, 0x0000), (0x7FE0, 0x0010)),
)


def broken_series(number: int, slices: dict[str, bytes]) -> dict[str, bytes]:
    """The slices of a DICOM series, by file name, of which some are broken; the same ones for the same number."""
    rng = np.random.default_rng(number)
    chosen = sorted(slices) if rng.random() < 0.3 else rng.choice(sorted(slices), int(rng.integers(1, 4))).tolist()
    found, seed = dict(slices), int(rng.integers(2**32))
    for name in chosen:  # the same damage in each
        content, again = bytearray(slices[name]), np.random.default_rng(seed)
        for _ in range(int(again.integers(1, 4))):
            SLICE_DAMAGE[int(again.integers(len(SLICE_DAMAGE)))](content, again)
        found[name] = bytes(content)
    return found


def set_element(content: bytearray, rng: np.random.Generator) -> None:
    """Put nonsense where an element has its representation, length or value."""
    place = content.find(struct.pack("<HH", *ELEMENTS[int(rng.integers(len(ELEMENTS)))]))
    if place < 0 or place + 16 > len(content):
        return
    field = int(rng.integers(3))
    if field == 0:
        content[place + 4 : place + 6] = bytes(rng.choice([b"US", b"DS", b"OB", b"SQ", b"UN", b"\0\0"]))
    elif field == 1:
        content[place + 6 : place + 8] = struct.pack("<H", int(rng.choice([0, 1, 3, 255, 65534, 65535])))
    else:
        value = rng.choice([b"\0\0", b"\xff\xff", b"-1", b"nan", b"1e", b"9" * 8, b"\\\\", b"a\\b"])
        content[place + 8 : place + 8 + len(value)] = bytes(value)


def flip_anywhere_in_the_header(content: bytearray, rng: np.random.Generator) -> None:
    if len(content) > 128:  # of a file cut short before, there may be no header left
        for place in rng.integers(128, min(len(content), 1200), int(rng.integers(1, 9))):
            content[place] ^= 1 << int(rng.integers(8))


SLICE_DAMAGE = (set_element, set_element, set_element, flip_anywhere_in_the_header, truncate, cut_out)
