"""Other people's packages, called on arrays; `make bench` installs them into a folder of their own.

MONAI and scikit-learn are needed by the tests anyway. medmetric, prdc, torch-fidelity and sim-toolkit are installed
without their dependencies: those pin other versions of NumPy or need torchvision, which reads images and is not
compatible with every build of PyTorch. What the two packages import only to read images or to draw
(`STAND_INS`) is replaced by stand-ins when it is not installed; the functions called here compute on feature arrays and
touch none of it. sim-toolkit offers its metrics for image folders only, so its feature extraction is
replaced by the arrays and its own formula runs on them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(sys.prefix) / "peers"
STAND_INS = ("torchvision", "matplotlib", "seaborn", "reportlab")
MODULES = {
    "monai": ("metrics",),
    "medmetric": ("metrics", "models.resnet"),
    "prdc": ("prdc",),
    "torch_fidelity": ("metric_fid", "metric_kid", "metric_prc"),
    "sim_toolkit": ("metrics.frechet_inception_distance", "metrics.kernel_inception_distance", "metrics.pr_dc"),
}
Rows = NDArray[np.float64]


class _StandIns(MetaPathFinder, Loader):
    """Make modules that are not installed importable, and their content anything."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in STAND_INS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(name=spec.name)
        module.__path__ = []
        module.__spec__ = spec
        return module  # type: ignore[return-value]

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def prepare() -> None:
    """Make the peers importable; an installed package always comes before its stand-in."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
        sys.meta_path.append(_StandIns())


def missing() -> list[str]:
    """List the peers that are not installed, and import the others, so that no time holds an import."""
    prepare()
    absent = [name for name in MODULES if find_spec(name) is None]
    for name in set(MODULES) - set(absent):
        for module in MODULES[name]:
            importlib.import_module(f"{name}.{module}")
    return absent


def monai_fid(real: Rows, synthetic: Rows) -> float:
    """MONAI's FIDMetric."""
    import torch
    from monai.metrics import FIDMetric

    return float(FIDMetric()(torch.from_numpy(synthetic), torch.from_numpy(real)))


def monai_mmd(real: Rows, synthetic: Rows) -> float:
    """MONAI's MMDMetric: linear kernel, unbiased."""
    import torch
    from monai.metrics import MMDMetric

    pair = [torch.from_numpy(rows)[:, None, :, None] for rows in (synthetic, real)]
    return float(MMDMetric()(*pair))


def monai_ms_ssim(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """MONAI's MultiScaleSSIMMetric for intensities in [-1, 1], window of 9 voxels."""
    import torch
    from monai.metrics import MultiScaleSSIMMetric

    metric = MultiScaleSSIMMetric(spatial_dims=3, data_range=2.0, kernel_size=9)
    return float(metric(*(torch.from_numpy(v)[None, None] for v in (y, x))))


def medmetric_fid(real: Rows, synthetic: Rows) -> float:
    """FID of medmetric (MONAI's function)."""
    import torch
    from medmetric.metrics import FID

    return float(FID()(torch.from_numpy(synthetic), torch.from_numpy(real)))


def medmetric_mmd2(real: Rows, synthetic: Rows, bandwidth: float) -> float:
    """Unbiased RBF MMD² of medmetric at one bandwidth, negative values kept."""
    import torch
    from medmetric.metrics.mmd import mmd2_rbf

    return float(mmd2_rbf(torch.from_numpy(synthetic), torch.from_numpy(real), sigmas=bandwidth))


def medmetric_ms_ssim(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """MS-SSIM of medmetric (MONAI's function)."""
    import torch
    from medmetric.metrics import MS_SSIM

    metric = MS_SSIM(spatial_dims=3, data_range=2.0, kernel_size=9)
    return float(metric(*(torch.from_numpy(v)[None, None] for v in (y, x))))


def medmetric_r50(state: dict[str, Any]) -> Any:
    """ResNet-50 of medmetric with pooling, filled with a state dict."""
    from medmetric.models.resnet import Bottleneck, MedicalNetResNetPooled

    network = MedicalNetResNetPooled(Bottleneck, [3, 4, 6, 3], shortcut_type="B", no_cuda=True).eval()
    network.backbone.load_state_dict(state)
    return network


def fidelity_fid(real: Rows, synthetic: Rows) -> float:
    """FID of torch-fidelity, from features."""
    import torch
    from torch_fidelity import metric_fid

    first, second = (metric_fid.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (real, synthetic))
    return float(metric_fid.fid_statistics_to_metric(first, second, verbose=False)[metric_fid.KEY_METRIC_FID])


def fidelity_mmd2(real: Rows, synthetic: Rows, *, bandwidth: float | None = None) -> float:
    """KID of torch-fidelity on one subset that holds all rows (equal N), or its RBF kernel at a bandwidth."""
    import torch
    from torch_fidelity import metric_kid

    kernel = {} if bandwidth is None else {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": bandwidth}
    rows = [torch.from_numpy(r) for r in (synthetic, real)]
    found = metric_kid.kid_features_to_metric(*rows, kid_subsets=1, kid_subset_size=len(real), verbose=False, **kernel)
    return float(found[metric_kid.KEY_METRIC_KID_MEAN])


def fidelity_precision_recall(real: Rows, synthetic: Rows, k: int) -> list[float]:
    """Precision and recall of torch-fidelity, whose balls are closed."""
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    return list(calculate_precision_recall_full(torch.from_numpy(synthetic), torch.from_numpy(real), neighborhood=k))


def prdc_shares(real: Rows, synthetic: Rows, k: int) -> list[float]:
    """Precision, recall, density and coverage of their authors' package."""
    import prdc

    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc(real, synthetic, k)
    return [float(found[name]) for name in ("precision", "recall", "density", "coverage")]


def sim_fid(real: Rows, synthetic: Rows) -> float:
    """FID of sim-toolkit."""
    return float(_sim("frechet_inception_distance", "compute_fid", real, synthetic, None, None))


def sim_kid(real: Rows, synthetic: Rows) -> float:
    """KID of sim-toolkit on one subset that holds all rows."""
    return float(_sim("kernel_inception_distance", "compute_kid", real, synthetic, None, None, 1, len(real)))


def sim_shares(real: Rows, synthetic: Rows, k: int) -> list[float]:
    """Precision, recall, density and coverage of sim-toolkit, which computes them in single precision."""
    return [float(share) for share in _sim("pr_dc", "compute_prdc", real, synthetic, None, None, k=k)]


def _sim(module: str, function: str, real: Rows, synthetic: Rows, *arguments: Any, k: int = 5) -> Any:
    """Call a metric of sim-toolkit on features in place of what it would extract from image folders."""
    import torch

    utilities = importlib.import_module("sim_toolkit.metrics.metric_utils")
    metric = importlib.import_module(f"sim_toolkit.metrics.{module}")

    def extracted(rows: Rows) -> Any:
        moments = rows.mean(axis=0), np.cov(rows, rowvar=False)
        return SimpleNamespace(
            get_all=lambda: rows, get_all_torch=lambda: torch.from_numpy(rows), get_mean_cov=lambda: moments
        )

    utilities.compute_feature_stats_for_dataset = lambda **_: extracted(real)
    utilities.compute_feature_stats_synthetic = lambda **_: extracted(synthetic)
    for name in ("plot_tsne", "plot_pca", "get_unique_filename"):
        setattr(utilities, name, lambda *_, **__: None)
    metric.dnnlib = SimpleNamespace(util=SimpleNamespace(construct_class_by_name=lambda **_: None))
    options = SimpleNamespace(
        data_type="3d", dataset_kwargs={}, device="cpu", rank=0, run_dir="", nhood_size=k, cache=False
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return getattr(metric, function)(options, *arguments)
