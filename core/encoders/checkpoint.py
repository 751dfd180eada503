"""Reads weight files without running code in them, and checks that they fit a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from core.errors import InputError

CONTAINERS = ("state_dict", "model", "model_state_dict")
IGNORED = ("conv_seg.",)  # MedicalNet's segmentation head, not part of the encoder
SHOWN = 3  # names listed in an error


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
        Floating tensors by name, float32, without prefix, segmentation head and counters.

    Raises
    ------
    InputError
        When the file is missing, truncated, holds other things than tensors, or values
        that are not finite.
    """
    if not path.is_file():
        raise InputError("there is no such weight file.", str(path), "Check the path.")
    content = _load(path)
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
    kept = {
        k: v.float() for k, v in tensors.items() if not k.startswith(IGNORED) and not k.endswith("num_batches_tracked")
    }
    bad = [k for k, v in kept.items() if not torch.isfinite(v).all()]
    if bad:
        raise InputError(f"{_listed(bad)} hold NaN or Inf.", str(path), "Use a checkpoint from before it diverged.")
    return kept


def fill(network: torch.nn.Module, path: Path, title: str) -> None:
    """Load a weight file into a network, strictly.

    Raises
    ------
    InputError
        As `read`, and when names or shapes are not those of the network; all problems in one message.
    """
    tensors = read(path)
    expected = {k: v.shape for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
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
            f"this is a weight file of another network, not of {title}; of its {len(expected)} tensors: "
            f"{'; '.join(problems)}.",
            str(path),
            "Choose the encoder the file belongs to, or the file of this encoder.",
        )
    network.load_state_dict(tensors, strict=False)  # strict but for the batch counters, which eval mode never reads


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead to
        # What torch says before this mark advises to run the pickle; nobody should read that here.
        text = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2]
        text = text.partition(" Check the documentation")[0]
        if "GLOBAL" in text or "allowlisted" in text:
            what = "holds Python objects beside tensors; loading them could run code, so it is refused."
            remedy = "Save the state dict alone, or as safetensors."
        else:
            what = f"not a readable checkpoint: truncated, or no PyTorch file ({text[:120] or type(error).__name__})."
            remedy = "Copy or download it again, and compare its size and SHA-256 with the origin."
        raise InputError(what, str(path), remedy) from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
