"""Reads weight files without running code in them, and checks that they fit a network."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import InputError

COUNTER = "num_batches_tracked"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
CONTAINERS = ("state_dict", "model", "model_state_dict")
SHOWN = 3  # names listed in an error
SHARED, SMALL = 8, 2**29  # how often tensors may show one stored byte, as tied weights do; bytes that harm nobody


def write(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically, with the permissions of any new file; ``facts`` go into the header."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that was killed
    partial.touch()
    mode = partial.stat().st_mode
    save_file(dict(tensors), partial, dict(facts) if facts else None)
    partial.chmod(mode)  # the library's own temporary file can be read by its owner alone
    partial.replace(path)


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a PyTorch checkpoint or safetensors file.

    Parameters
    ----------
    path : Path
        The tensors may lie bare or under ``state_dict`` or ``model``, with or without the
        prefix ``module.``. Pickles are never executed.

    Returns
    -------
    dict
        Floating tensors by name, float32, without prefix and batch counters.

    Raises
    ------
    InputError
        When the file is missing, truncated, holds other things than tensors, values that are not finite, or claims
        to hold more than fits into it.
    """
    if not path.is_file():
        raise InputError("there is no such weight file.", str(path), "Check the path.")
    content = _load(path)
    if isinstance(content, Mapping) and {"optimisers", "averages"} <= content.keys():
        what = "the state of a training run, whose weights are not those it exports."
        raise InputError(what, str(path), "Name the folder, or model.safetensors in it.")
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        found = type(content).__name__ if not isinstance(content, Mapping) else "a mapping without tensors"
        raise InputError(
            f"not a checkpoint: found {found}, expected tensors by name.",
            str(path),
            'Save the network with torch.save({"state_dict": network.state_dict()}, FILE).',
        )
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    _refuse_bombs(tensors, path)
    kept = {k: v.float() for k, v in tensors.items() if not k.endswith(COUNTER)}
    bad = [k for k, v in kept.items() if not torch.isfinite(v).all()]
    if bad:
        raise InputError(f"{_listed(bad)} hold NaN or Inf.", str(path), "Use a checkpoint from before it diverged.")
    return kept


def read_settings(path: Path) -> dict[str, object]:
    """Return the ``config`` a PyTorch checkpoint keeps beside its tensors; {} without one."""
    content = _load(path) if path.suffix != ".safetensors" else {}
    settings = content.get("config") if isinstance(content, Mapping) else None
    return {str(k): v for k, v in settings.items()} if isinstance(settings, Mapping) else {}


def misfits(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names in which tensors and network differ: missing, unexpected, of another shape."""
    expected = _expected(network)
    wrong = [k for k in expected if k not in tensors or tensors[k].shape != expected[k]]
    return wrong + [k for k in tensors if k not in expected]


def refuse_misfits(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, title: str) -> None:
    """Check that tensors are those of a network; all problems in one message.

    Raises
    ------
    InputError
        When names or shapes are not those of the network.
    """
    expected = _expected(network)
    missing = [k for k in expected if k not in tensors]
    unexpected = [k for k in tensors if k not in expected]
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(shape)}"
        for k, shape in expected.items()
        if k in tensors and tensors[k].shape != shape
    ]
    problems = [
        f"{len(names)} {what} ({_listed(names)})"
        for names, what in ((missing, "missing"), (unexpected, "unexpected"), (shapes, "of another shape"))
        if names
    ]
    if problems:
        raise InputError(
            f"this is a weight file of another network, not of {title}, which has {len(expected)} tensors: "
            f"{'; '.join(problems)}.",
            str(path),
            "Choose the model the file belongs to, or the file of this model.",
        )


def load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that were checked into a network; batch counters, which eval mode never reads, stay."""
    network.load_state_dict(dict(tensors), strict=False)


def sha256(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _expected(network: nn.Module) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in network.state_dict().items() if not k.endswith(COUNTER)}


def _refuse_bombs(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are larger than the file: one stored number can be shown as any shape."""
    dense = all(v.layout is torch.strided and not v.is_quantized and not v.is_complex() for v in tensors.values())
    wanted, held = sum(v.numel() * v.element_size() for v in tensors.values()), path.stat().st_size
    if not dense or wanted > max(SMALL, SHARED * held):
        what = f"the tensors claim {wanted:,} bytes, the file has {held:,}." if dense else "not plain tensors."
        raise InputError(what, str(path), "Save the network's state dict again.")


def _check_archive(path: Path) -> None:
    """Refuse what would take memory without end: compressed archives, which torch never writes, and byte arrays."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:  # the one allowed call whose number is its cost
            raise ValueError("it asks for a byte array")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("the archive inflates to more than the file holds")


class _Clipped(io.BufferedReader):
    """A file that takes no memory for bytes it does not have; a pickle may ask for four billion."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_archive(path)
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        with _Clipped(io.FileIO(path)) as file:  # the old format
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead to
        # What torch says before this mark advises to run the pickle; nobody should read that here.
        text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
        text = text.partition(" Check the documentation")[0]
        if "GLOBAL" in text or "allowlisted" in text:
            what = "holds Python objects beside tensors; loading them could run code, so it is refused."
            remedy = "Save the state dict alone, or as safetensors."
        else:
            what = "not a readable checkpoint: truncated, empty, or no PyTorch file."
            remedy = "Copy or download it again, and compare its size and SHA-256 with the origin."
        raise InputError(what, str(path), remedy) from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
