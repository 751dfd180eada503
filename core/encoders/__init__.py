"""Encoders of volumes into feature vectors; the order of `ENCODERS` is the order on screen.

An encoder is one file with a loader, one line here and one test. A loader takes the path of
a checked weight file (None when the encoder needs none) and returns the network as a torch
module in eval mode, (b, 1, x, y, z) to (b, width). Torch is imported by the loaders alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from core.encoders import weights as files
from core.encoders.weights import PackagedFile, WeightSource
from core.errors import InputError, MissingAsset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ENCODERS",
    "Encoder",
    "PackagedFile",
    "WeightSource",
    "available",
    "build",
    "encoder_named",
    "fetch",
    "fingerprint",
    "label_named",
]

VERSION = 1  # raise when the features of every encoder change


@dataclass(frozen=True)
class Encoder:
    """What an encoder says about itself.

    Parameters
    ----------
    label : str
        Name on screen.
    card : str
        What it was trained on, in one sentence.
    reference : str
        Source with DOI.
    width : int
        Features of one volume.
    preprocess_input : str
        What is done to the [-1, 1] volume before the first layer.
    loader : str
        ``module:function`` of the loader.
    network : str
        Architecture; two encoders of one network differ by their weights alone.
    source : WeightSource or None
        Published weight file to download.
    packaged : PackagedFile or None
        Weight file inside an installed package.
    seed : int or None
        Seed of random weights.
    version : int
        Raised when the features of this encoder change.
    """

    label: str
    card: str
    reference: str
    width: int
    preprocess_input: str
    loader: str
    network: str
    source: WeightSource | None = None
    packaged: PackagedFile | None = None
    seed: int | None = None
    version: int = 1

    @property
    def needs_download(self) -> bool:
        """Whether its weights are not part of the installation."""
        return self.source is not None


_CHEN = "Chen, Ma & Zheng, Med3D: Transfer Learning for 3D Medical Image Analysis (2019), doi:10.48550/arXiv.1904.00625"
_FISCH = "Fisch et al., deepbet: Fast brain extraction of T1-weighted MRI (2023), doi:10.48550/arXiv.2308.07003"
_HE = "He et al., Delving Deep into Rectifiers, ICCV (2015), doi:10.1109/ICCV.2015.123"
_AS_IT_IS = "none: the [-1, 1] volume as it is"
_R50 = "TencentMedicalNet/MedicalNet-Resnet50"
_R101 = "TencentMedicalNet/MedicalNet-Resnet101"

ENCODERS: dict[str, Encoder] = {
    "medicalnet-r101": Encoder(
        label="MedicalNet ResNet-101",
        card="3D ResNet-101 trained to segment organs and tumours in CT and MRI; used in the paper as R101.",
        reference=_CHEN,
        width=2048,
        preprocess_input=_AS_IT_IS,
        loader="core.encoders.medicalnet:load_r101",
        network="medicalnet-resnet101",
        source=WeightSource(
            _R101, "resnet_101.pth", "a26bbcf9b2ad35f048b0fa317234c003f171a4d719760e5c4aff9f793654ebcf"
        ),
    ),
    "medicalnet-r50-23": Encoder(
        label="MedicalNet ResNet-50 (23 data sets)",
        card="3D ResNet-50 trained to segment organs and tumours in 23 CT and MRI data sets; in the paper R50_23.",
        reference=_CHEN,
        width=2048,
        preprocess_input=_AS_IT_IS,
        loader="core.encoders.medicalnet:load_r50",
        network="medicalnet-resnet50",
        source=WeightSource(
            _R50, "resnet_50_23dataset.pth", "ff48a62219073fb977fd3f4ddfb8dc1367f0ec156c8d6f6c37e205bd683a246e"
        ),
    ),
    "medicalnet-r50": Encoder(
        label="MedicalNet ResNet-50",
        card="3D ResNet-50 trained to segment organs and tumours in CT and MRI; used in the paper as R50.",
        reference=_CHEN,
        width=2048,
        preprocess_input=_AS_IT_IS,
        loader="core.encoders.medicalnet:load_r50",
        network="medicalnet-resnet50",
        source=WeightSource(_R50, "resnet_50.pth", "5b6189cafbee2f5604a7279b62bc163365aa6a86a377e1dc260a14275cacbd84"),
    ),
    "random-r50": Encoder(
        label="Untrained ResNet-50",
        card="The MedicalNet ResNet-50 with fixed random weights, trained on nothing: shows what training adds.",
        reference=_HE,
        width=2048,
        preprocess_input=_AS_IT_IS,
        loader="core.encoders.medicalnet:load_random_r50",
        network="medicalnet-resnet50",
        seed=0,
        version=2,
    ),
    "deepbet": Encoder(
        label="deepbet bottleneck",
        card="Encoder half of a network trained to find the brain in T1-weighted scans of adults (191 data sets).",
        reference=_FISCH,
        width=128,
        preprocess_input="averaged to 2 mm, 0.5 % and 99.5 % quantiles to 0 and 1, clipped, then mean 0.449, SD 0.226",
        loader="core.encoders.deepbet_features:load",
        network="deepbet-linknet",
        packaged=PackagedFile("deepbet", "data/models/bbox_model.pt"),
    ),
    "embedded": Encoder(
        label="Embedded segmenter's bottleneck",
        card="Encoder half of this product's segmentation network, trained to find 98 brain regions in rendered "
        "label maps of 11 people and the atlas.",
        reference="SynthScope's model card of its segmenter (docs/segmenter.md of its source), after SynthSeg: "
        "Billot et al., Medical Image Analysis 86 (2023), doi:10.1016/j.media.2023.102789",
        width=192,
        preprocess_input="averaged to 2 mm",
        loader="core.encoders.embedded_features:load",
        network="embedded-segmenter",
        packaged=PackagedFile("core", "assets/embedded.safetensors"),
    ),
}


def build(name: str, weights: Path | str | None = None, *, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """Make an encoder ready to use.

    Parameters
    ----------
    name : str
        Key of `ENCODERS`.
    weights : path, optional
        Weight file: a PyTorch checkpoint or safetensors. Without it the published file is
        taken from the Hugging Face cache, or downloaded.
    device : str
        Torch device the network lives on.

    Returns
    -------
    callable
        (b, 1, x, y, z) tensor of volumes in [-1, 1] to (b, d) float32 features, on ``device``,
        without gradients. Raises InputError for a tensor of another shape.

    Raises
    ------
    InputError
        Unknown encoder, or a weight file that is not one of this network.
    MissingAsset
        The weights are not on this machine and cannot be downloaded.
    """
    import torch

    encoder = encoder_named(name)
    path = _weight_path(name, weights)
    if path is not None:
        _refuse_mix_up(name, path)
    module, function = encoder.loader.split(":")
    network = getattr(import_module(module), function)(path).eval().to(device)

    def encode(volumes: Tensor) -> Tensor:
        if volumes.ndim != 5 or volumes.shape[1] != 1:
            raise InputError(f"expected a tensor (b, 1, x, y, z), found {tuple(volumes.shape)}.", name)
        with torch.inference_mode():
            features: Tensor = network(volumes.to(device, torch.float32))  # (b, d)
        return features

    return encode


def fetch(name: str, folder: Path | str | None = None) -> Path:
    """Return the published weight file of an encoder, downloaded when needed, its SHA-256 checked.

    Parameters
    ----------
    name : str
        Key of `ENCODERS`.
    folder : path, optional
        Where to place the file; without it, it stays in the Hugging Face cache.

    Raises
    ------
    InputError
        Unknown encoder, an encoder without weight file, or a file of that name with other content.
    MissingAsset
        The file is not on this machine and cannot be downloaded.
    """
    encoder = encoder_named(name)
    if encoder.source is None:
        raise InputError("this encoder needs no download.", name)
    return files.fetch(encoder.source, Path(folder) if folder is not None else None)


def fingerprint(name: str, weights: Path | str | None = None) -> str:
    """Hash of everything that decides an encoder's features: network, weights and code version.

    Parameters
    ----------
    name : str
        Key of `ENCODERS`.
    weights : path, optional
        Weight file; without it the published one is meant, whether or not it is on this machine.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits; the path of the file does not enter.

    Raises
    ------
    InputError
        Unknown encoder, no such weight file, or the published weights of another encoder.
    MissingAsset
        The package that holds the weights is not installed.
    """
    encoder = encoder_named(name)
    if weights is not None:
        _refuse_unwanted(name)
        _refuse_mix_up(name, Path(weights))
        content = files.sha256(Path(weights))
    elif encoder.source is not None:
        content = encoder.source.sha256
    elif encoder.packaged is not None:
        content = files.sha256(encoder.packaged.locate())
    else:
        content = f"seed {encoder.seed}"
    parts = (encoder.network, encoder.preprocess_input, content, str(encoder.version), str(VERSION))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def available(name: str, folder: Path | str | None = None) -> bool:
    """Whether an encoder works now, without a download.

    Parameters
    ----------
    name : str
        Key of `ENCODERS`.
    folder : path, optional
        Folder that may hold the weight file, beside the Hugging Face cache.
    """
    encoder = encoder_named(name)
    if encoder.source is not None:
        return files.find(encoder.source, Path(folder) if folder is not None else None) is not None
    if encoder.packaged is None:
        return True
    try:
        encoder.packaged.locate()
    except MissingAsset:
        return False
    return True


def encoder_named(name: str) -> Encoder:
    """Return the encoder called ``name``; raises InputError when there is none."""
    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}.", "encoders", f"Choose of: {', '.join(ENCODERS)}.")
    return ENCODERS[name]


def label_named(name: str) -> str:
    """Return the label of an encoder for readers; one that is not known is called by its name."""
    return ENCODERS[name].label if name in ENCODERS else name


def _weight_path(name: str, weights: Path | str | None) -> Path | None:
    if weights is not None:
        _refuse_unwanted(name)
        return Path(weights)
    encoder = ENCODERS[name]
    if encoder.packaged is not None:
        return encoder.packaged.locate()
    return fetch(name) if encoder.source is not None else None


def _refuse_unwanted(name: str) -> None:
    if ENCODERS[name].source is None:
        raise InputError("this encoder takes no weight file.", name, "Leave out the weights.")


def _refuse_mix_up(name: str, path: Path) -> None:
    """Refuse the published file of another encoder: R50 and R50_23 differ in nothing but their numbers."""
    content = files.sha256(path)
    owner = next((n for n, e in ENCODERS.items() if e.source is not None and e.source.sha256 == content), name)
    if owner != name:
        raise InputError(f"these are the weights of {owner}, not of {name}.", str(path), f"Use them with {owner}.")
