"""Encoders: the published architecture, weight files that are not what they should be, and no network."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import encoders
from core.encoders import deepbet_features, medicalnet, weights
from core.errors import InputError, MissingAsset
from core.volume import FULL, HALF, template

OFFLINE = ("random-r50", "deepbet", "embedded")
MEDICALNET = ("medicalnet-r101", "medicalnet-r50-23", "medicalnet-r50")


def trained_like(depths: tuple[int, int, int, int]) -> medicalnet.MedicalNet:
    """Make a network whose normalisation is not the identity."""
    network = medicalnet.MedicalNet(depths).eval()
    medicalnet.set_random(network, seed=3)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            for tensor, low, high in (
                (module.weight.data, 0.3, 1.0),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network


@pytest.fixture(scope="module")
def r50_state() -> dict[str, Tensor]:
    return trained_like(medicalnet.R50).state_dict()


@pytest.fixture(scope="module")
def r50_file(r50_state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet_50.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in r50_state.items()}}, path)
    return path


def hollow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep names and shapes, but one stored number each, so that the file is small."""
    return {k: torch.zeros(1).expand(v.shape) for k, v in state.items() if v.ndim}


def reference_forward(s: dict[str, Tensor], x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """Compute the published network once more, from its state dict alone."""

    def unit(x: Tensor, conv: str, norm: str, **how: int) -> Tensor:
        x = F.conv3d(x, s[f"{conv}.weight"], **how)
        return F.batch_norm(
            x, s[f"{norm}.running_mean"], s[f"{norm}.running_var"], s[f"{norm}.weight"], s[f"{norm}.bias"]
        )

    x = F.max_pool3d(F.relu(unit(x, "conv1", "bn1", stride=2, padding=3)), 3, 2, 1)
    for layer, depth in enumerate(depths, start=1):
        dilation = {1: 1, 2: 1, 3: 2, 4: 4}[layer]
        for block in range(depth):
            p = f"layer{layer}.{block}."
            stride = 2 if (layer, block) == (2, 0) else 1
            y = F.relu(unit(x, p + "conv1", p + "bn1"))
            y = F.relu(unit(y, p + "conv2", p + "bn2", stride=stride, padding=dilation, dilation=dilation))
            y = unit(y, p + "conv3", p + "bn3")
            x = F.relu(y + (unit(x, p + "downsample.0", p + "downsample.1", stride=stride) if block == 0 else x))
    return x.mean(dim=(2, 3, 4))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# Registry


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_registry_entry_is_complete(name):
    encoder = encoders.ENCODERS[name]
    assert encoder.label and encoder.card.endswith(".") and "doi:10." in encoder.reference
    assert encoder.needs_download == (name in MEDICALNET)
    assert sum(x is not None for x in (encoder.source, encoder.packaged, encoder.seed)) == 1
    assert len(encoders.fingerprint(name)) == 64


def test_registry_names_and_order():
    assert list(encoders.ENCODERS) == [*MEDICALNET, *OFFLINE]
    assert encoders.ENCODERS["random-r50"].seed == medicalnet.RANDOM_SEED


def test_registry_does_not_import_torch():
    code = (
        "import sys; from core import encoders; [encoders.fingerprint(n) for n in encoders.ENCODERS];"
        "sys.exit('torch' in sys.modules or 'deepbet' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_lists_the_choices():
    for function in (encoders.build, encoders.fetch, encoders.fingerprint, encoders.available):
        with pytest.raises(InputError, match="random-r50"):
            function("r50")


# Architecture


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in medicalnet.MedicalNet(d).parameters()) for d in (medicalnet.R50, medicalnet.R101)
        ]
    assert counts[0] / 1e6 == pytest.approx(46.16, abs=0.005)
    assert counts[1] / 1e6 == pytest.approx(85.20, abs=0.005)


@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 40, 27)])
def test_r50_equals_a_plain_forward(r50_file, r50_state, shape):
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = encoders.build("medicalnet-r50", r50_file)(x)
    assert features.shape == (2, 2048) and features.dtype == torch.float32
    assert relative(features, reference_forward(r50_state, x, medicalnet.R50)) < 1e-5


def test_r101_network_equals_a_plain_forward():
    network = trained_like(medicalnet.R101)
    x = torch.rand(1, 1, 24, 24, 24) * 2 - 1
    with torch.inference_mode():
        expected = reference_forward(network.state_dict(), x, medicalnet.R101)
        assert relative(medicalnet.for_inference(network)(x), expected) < 1e-5


def test_first_two_layers_equal_monai(r50_state):
    from monai.networks.nets import resnet50

    other = resnet50(
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        bias_downsample=False,
        shortcut_type="B",
        feed_forward=False,
    ).eval()
    other.load_state_dict(r50_state)  # also checks that all names and shapes are MONAI's
    ours = medicalnet.MedicalNet(medicalnet.R50).eval()
    ours.load_state_dict(r50_state)
    x = torch.rand(1, 1, 32, 40, 32) * 2 - 1
    with torch.inference_mode():
        a, b = (n.maxpool(torch.relu(n.bn1(n.conv1(x)))) for n in (ours, other))
        for layer in ("layer1", "layer2"):
            a, b = ours.get_submodule(layer)(a), other.get_submodule(layer)(b)
            assert relative(a, b) < 1e-5
        a = ours.layer4(ours.layer3(a))
    assert a.shape == (1, 2048, 4, 5, 4)  # output stride 8: layers 3 and 4 dilate instead of striding


def test_batch_equals_single_volumes_and_runs_in_eval_mode(r50_file):
    encode = encoders.build("medicalnet-r50", str(r50_file))
    x = torch.rand(3, 1, 24, 32, 24) * 2 - 1
    together = encode(x)
    assert not together.requires_grad
    assert relative(together, torch.cat([encode(v[None]) for v in x])) < 1e-5
    assert torch.equal(together, encode(x))


@pytest.mark.parametrize("shape", [(24, 24, 24), (1, 24, 24, 24), (1, 2, 24, 24, 24)])
def test_wrong_tensor_is_refused(shape):
    with pytest.raises(InputError, match="b, 1, x, y, z"):
        encoders.build("deepbet")(torch.zeros(shape))


# Encoders that need no download


def test_random_weights_are_the_same_everywhere():
    network = medicalnet.MedicalNet((1, 1, 1, 1))
    medicalnet.set_random(network, medicalnet.RANDOM_SEED)
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        if "conv" in key or "downsample.0" in key:
            digest.update(np.ascontiguousarray(value.numpy()).tobytes())
    assert digest.hexdigest() == "9853838ee3e0e4d375ba0e746d2fefcd157fd657b8d21f94a9beed936a614e53"
    weight = network.layer4[0].conv2.weight.detach()
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)
    assert float(weight.var()) == pytest.approx(2 / (512 * 27), rel=0.01)


@pytest.mark.parametrize("name", OFFLINE)
def test_features_depend_on_the_brain(name):
    brain = torch.from_numpy(template(HALF).data.copy())[None, None]
    blurred = F.avg_pool3d(brain, 3, 1, 1)
    # Narrower brain: another anatomy with the same tissue.
    narrow = F.pad(F.interpolate(brain, (60, 96, 72), mode="trilinear"), (0, 0, 0, 0, 6, 6), value=-1.0)
    features = encoders.build(name)(torch.cat([brain, blurred, narrow]))
    assert features.shape == (3, encoders.ENCODERS[name].width) and bool(torch.isfinite(features).all())
    assert float((features[0] == 0).float().mean()) < 0.1
    assert 1e-3 < float(features.abs().mean()) < 1e3
    for other in (1, 2):
        assert relative(features[other], features[0]) > 0.005
    spread = torch.linalg.svdvals(features - features.mean(0))
    assert spread[1] > 0.02 * spread[0]  # blurring and narrowing move the features in different directions


def test_deepbet_bottleneck_equals_the_packaged_network():
    path = encoders.ENCODERS["deepbet"].packaged.locate()
    traced = torch.jit.load(str(path)).eval()
    x = torch.rand(1, 1, 64, 64, 64)
    relu = getattr(traced.conv, "2")  # the trace passes its one activation module along
    with torch.inference_mode():
        expected = traced.init(relu, x)
        for stage in range(4):
            expected = getattr(traced, f"down{stage}")(relu, expected)
        assert relative(deepbet_features.load(path).bottleneck(x), expected) < 1e-6


def test_deepbet_normalisation_equals_the_package():
    from deepbet.utils import normalize

    x = torch.from_numpy(template(HALF).data.copy())[None, None]
    expected = normalize(x, x.quantile(0.005), x.quantile(0.995))
    assert relative(deepbet_features.normalise(x), expected) < 1e-6
    both = deepbet_features.normalise(torch.cat([x, 3 * x + 1]))  # per volume, and blind to linear intensity changes
    assert relative(both[1], both[0]) < 1e-4
    assert bool(torch.isfinite(deepbet_features.normalise(torch.full((1, 1, 4, 4, 4), -1.0))).all())


def test_deepbet_agrees_between_the_grids():
    encode = encoders.build("deepbet")
    full = torch.from_numpy(template(FULL).data.copy())[None, None]
    assert relative(encode(full), encode(F.avg_pool3d(full, 2))) < 1e-5


# Weight files


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "safetensors", "conv_seg"])
def test_layouts_are_accepted(wrap, r50_state, tmp_path):
    network = medicalnet.MedicalNet((1, 1, 1, 1))
    medicalnet.set_random(network, 5)
    state = network.state_dict()
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif wrap == "conv_seg":
        torch.save({"state_dict": {**state, "module.conv_seg.0.weight": torch.zeros(3)}}, path)
    else:
        torch.save(state if wrap == "bare" else {wrap: {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    filled = medicalnet.MedicalNet((1, 1, 1, 1))
    medicalnet.fill(filled, path, "test network")
    assert torch.equal(filled.layer4[0].conv2.weight, network.layer4[0].conv2.weight)


def test_another_network_is_named_as_such(tmp_path, r50_state):
    with torch.device("meta"):
        r101 = medicalnet.MedicalNet(medicalnet.R101).state_dict()
    path = tmp_path / "resnet_101.pth"
    torch.save({"state_dict": hollow(r101)}, path)
    with pytest.raises(InputError, match=r"another network.*265 tensors: 255 unexpected \(layer3\.6\.conv1\.weight"):
        encoders.build("medicalnet-r50", path)
    torch.save({"state_dict": hollow(r50_state)}, path)
    with pytest.raises(InputError, match="255 missing"):
        encoders.build("medicalnet-r101", path)


def test_all_problems_of_a_checkpoint_are_listed(tmp_path, r50_state):
    state = hollow(r50_state)
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7, 7)
    state["fc.weight"] = state.pop("bn1.bias")
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        encoders.build("medicalnet-r50", path)
    text = str(caught.value)
    assert "1 missing (bn1.bias)" in text and "1 unexpected (fc.weight)" in text
    assert (
        "1 of another shape (conv1.weight (64, 3, 7, 7, 7) instead of (64, 1, 7, 7, 7))" in text and str(path) in text
    )


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_pickles_are_never_executed(save, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "x": Payload(marker)}
    if save == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(InputError, match=r"evil\.pth.*Python objects") as caught:
        encoders.build("medicalnet-r50", path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q\x00.", "half"])
def test_files_that_are_no_checkpoint(suffix, content, tmp_path, r50_file):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(r50_file.read_bytes()[:3_000_000] if content == "half" else content)
    with pytest.raises(InputError, match="checkpoint"):
        encoders.build("medicalnet-r50", path)


def test_missing_file_nan_and_unwanted_weights(tmp_path, r50_state):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputError, match="no such weight file"):
            encoders.build("medicalnet-r50", path)
    broken = tmp_path / "nan.pth"
    torch.save({**hollow(r50_state), "bn1.bias": torch.full((64,), float("nan"))}, broken)
    with pytest.raises(InputError, match=r"bn1\.bias hold NaN"):
        encoders.build("medicalnet-r50", broken)
    for function in (encoders.build, encoders.fingerprint):
        with pytest.raises(InputError, match="takes no weight file"):
            function("random-r50", broken)


# Fingerprints


def test_fingerprint_follows_content_not_path(tmp_path):
    a, b, c = (tmp_path / n for n in ("a.pth", "b.pth", "c.pth"))
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    c.write_bytes(b"two")
    prints = [encoders.fingerprint("medicalnet-r50", p) for p in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]
    assert len({encoders.fingerprint(n) for n in encoders.ENCODERS} | set(prints)) == len(encoders.ENCODERS) + 2
    a.write_bytes(b"changed in place")
    assert encoders.fingerprint("medicalnet-r50", a) != prints[0]


def test_fingerprint_follows_version(monkeypatch):
    before = encoders.fingerprint("random-r50")
    entry = encoders.ENCODERS["random-r50"]
    monkeypatch.setitem(encoders.ENCODERS, "random-r50", replace(entry, version=entry.version + 1))
    assert encoders.fingerprint("random-r50") != before


# Download


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Pretend that the hub offers a small file; returns what can be switched."""
    import huggingface_hub
    from huggingface_hub import utils
    from huggingface_hub.errors import LocalEntryNotFoundError

    content = b"published weights"
    state = {"online": True, "content": content, "calls": 0}

    class Session:
        def head(self, *_: object, **__: object) -> None:
            if not state["online"]:
                raise OSError("Name or service not known")

    def download(repo, filename, *, local_dir=None, local_files_only=False, force_download=False):
        cached = tmp_path / "hub-cache" / filename
        if local_files_only:
            if not cached.exists():
                raise LocalEntryNotFoundError("not cached")
            return str(cached)
        state["calls"] += 1
        target = Path(local_dir) / filename if local_dir else cached
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(state["content"])
        return str(target)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(utils, "get_session", Session)
    source = weights.WeightSource("someone/network", "resnet_50.pth", hashlib.sha256(content).hexdigest())
    entry = replace(encoders.ENCODERS["medicalnet-r50"], source=source)
    monkeypatch.setitem(encoders.ENCODERS, "medicalnet-r50", entry)
    return state


def test_fetch_places_the_checked_file_once(hub, tmp_path):
    folder = tmp_path / "weights"
    assert not encoders.available("medicalnet-r50", folder)
    path = encoders.fetch("medicalnet-r50", folder)
    assert path == folder / "resnet_50.pth" and path.read_bytes() == hub["content"]
    assert [p.name for p in folder.iterdir()] == ["resnet_50.pth"]
    assert encoders.fetch("medicalnet-r50", folder) == path and hub["calls"] == 1
    assert encoders.available("medicalnet-r50", folder) and not encoders.available("medicalnet-r50")


def test_fetch_uses_the_hub_cache(hub, tmp_path):
    cached = encoders.fetch("medicalnet-r50")
    hub["online"] = False
    assert encoders.available("medicalnet-r50") and encoders.fetch("medicalnet-r50") == cached
    placed = encoders.fetch("medicalnet-r50", tmp_path / "weights")
    assert placed.read_bytes() == hub["content"] and hub["calls"] == 1


def test_corrupt_cache_and_corrupt_download(hub, tmp_path):
    cached = encoders.fetch("medicalnet-r50")
    cached.write_bytes(b"damaged")
    assert not encoders.available("medicalnet-r50")
    assert encoders.fetch("medicalnet-r50").read_bytes() == hub["content"]
    cached.unlink()
    hub["content"] = b"something else"
    with pytest.raises(MissingAsset, match="not the published file"):
        encoders.fetch("medicalnet-r50", tmp_path / "weights")
    assert list((tmp_path / "weights").iterdir()) == []


def test_offline_says_which_file_and_where(hub, tmp_path):
    hub["online"] = False
    source = encoders.ENCODERS["medicalnet-r50"].source
    with pytest.raises(MissingAsset) as caught:
        encoders.fetch("medicalnet-r50", tmp_path)
    for part in (source.filename, source.page, source.sha256, str(tmp_path / source.filename), "--weights FILE"):
        assert part in str(caught.value)
    with pytest.raises(MissingAsset, match="--weights FILE"):
        encoders.build("medicalnet-r50")


def test_hub_client_offline_mode(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingAsset, match=r"resnet_101\.pth"):
        encoders.fetch("medicalnet-r101", tmp_path / "weights")
    assert not encoders.available("medicalnet-r101")


def test_another_file_in_the_folder_is_kept_and_named(hub, tmp_path):
    placed = tmp_path / "resnet_50.pth"
    placed.write_bytes(b"cut off")
    assert not encoders.available("medicalnet-r50", tmp_path)
    with pytest.raises(InputError, match="SHA-256"):
        encoders.fetch("medicalnet-r50", tmp_path)
    assert placed.read_bytes() == b"cut off"


def test_the_published_file_of_another_encoder_is_refused(hub, tmp_path):
    path = tmp_path / "renamed.pth"
    path.write_bytes(hub["content"])
    assert encoders.fingerprint("medicalnet-r50", path) == encoders.fingerprint("medicalnet-r50")
    with pytest.raises(InputError, match="weights of medicalnet-r50, not of medicalnet-r50-23"):
        encoders.fingerprint("medicalnet-r50-23", path)


def test_encoders_without_weights_need_no_fetch():
    assert all(encoders.available(name) for name in OFFLINE)
    with pytest.raises(InputError, match="no download"):
        encoders.fetch("deepbet")


def test_missing_package_is_a_missing_asset(monkeypatch):
    entry = replace(encoders.ENCODERS["deepbet"], packaged=weights.PackagedFile("no_such_package", "x.pt"))
    monkeypatch.setitem(encoders.ENCODERS, "deepbet", entry)
    assert not encoders.available("deepbet")
    with pytest.raises(MissingAsset, match="pip install"):
        encoders.build("deepbet")
