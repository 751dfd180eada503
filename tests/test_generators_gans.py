"""VAE-GAN, α-WGAN, HA-GAN: published networks and files, objectives in closed form, sampling, refusals."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import checkpoint
from core.errors import InputError
from core.generators import GENERATORS, alpha_wgan, build, ha_gan, vae_gan
from core.generators.alpha_wgan import AlphaWgan, gradient_penalty
from core.generators.base import Generator
from core.generators.blocks import DoublingConv
from core.generators.ha_gan import HaGan, NormedLinear
from core.generators.training import EXPORT, Fabric, Machine, Plan, Run, train
from core.generators.vae_gan import VaeGan
from core.volume import FULL, HALF, Grid

NAMES = ("vae-gan", "alpha-wgan", "ha-gan")
TINY = Grid("tiny", (36, 48, 36), 4.0, (-70.0, -109.0, -65.5))
CRITIC, DECODER = (2, 2, 3, 4), (4, 3, 2, 2)
VAE = vae_gan.Config(latent=5, hidden=6, critic=CRITIC, decoder=DECODER, base=(2, 3, 2), pooled=2)
ALPHA = alpha_wgan.Config(latent=5, code_units=6, critic=CRITIC, decoder=DECODER, base=(2, 3, 2))
HA = ha_gan.Config(5, (4, 4, 4, 4, 4, 4, 2), (2, 3, 4, 8), (2, 3), (2, 4), groups=1, slab=12, position=60)


def tiny(name: str, seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    model = {
        "vae-gan": lambda: VaeGan(TINY, VAE),
        "alpha-wgan": lambda: AlphaWgan(TINY, ALPHA),
        "ha-gan": lambda: HaGan(HALF, HA),
    }[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brains(model: Generator, n: int = 2) -> Tensor:
    return torch.rand(n, 1, *model.grid.shape, generator=rng(5)) * 2 - 1


def on_paper(name: str) -> Generator:
    """Return the network for 144×192×144 without memory for its weights."""
    with torch.device("meta"):
        return build(name)


def silence(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def wrapped(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module as DataParallel saves it."""
    return nn.DataParallel(module).state_dict()


def publish(model: Generator, module: str, path: Path) -> Path:
    """Write a file as the published training scripts do."""
    child = model.get_submodule(module)
    if model.name == "vae-gan":
        torch.save(wrapped(child), path)
        return path
    optimiser = model.optimiser(module)
    for parameter in child.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    torch.save({"model": wrapped(child), "optimizer": optimiser.state_dict()}, path)
    return path


def state(model: Generator) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The published networks


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vae-gan", {"generator": 53_849_664, "encoder": 149_336_720, "discriminator": 11_049_665}),
        (
            "alpha-wgan",
            {
                "generator": 53_800_512,
                "encoder": 43_785_896,
                "discriminator": 11_049_665,
                "code_discriminator": 20_901_889,
            },
        ),
        (
            "ha-gan",
            {
                "generator": 52_518_210,
                "discriminator": 7_241_442,
                "encoder": 161_152,
                "sub_encoder": 19_663_168,
            },
        ),
    ],
)
def test_full_networks_have_the_published_number_of_parameters(name, counts):
    model = on_paper(name)
    assert {k: sum(p.numel() for p in m.parameters()) for k, m in model.named_children()} == counts
    assert model.name == name
    assert GENERATORS[name].one_pass
    assert model.steps is None


def layers(names: dict[str, tuple[int, ...]], *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    found = {f"{k}.weight": v for k, v in names.items()}
    return found | ({f"{k}.bias": v[:1] for k, v in names.items()} if bias else {})


def batch_norms(widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {f"{k}.{p}": (w,) for k, w in widths.items() for p in ("weight", "bias", "running_mean", "running_var")}


def group_norms(widths: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return layers({k: (w,) for k, w in widths.items()})


def spectral(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    buffers = {f"{k}.u0": (1, v[0]) for k, v in names.items()} | {f"{k}.sv0": (1,) for k in names}
    return layers(names) | buffers


def cube(outputs: int, inputs: int, side: int) -> tuple[int, ...]:
    return outputs, inputs, side, side, side


TRUNK = layers(
    {"conv1": cube(64, 1, 4), "conv2": cube(128, 64, 4), "conv3": cube(256, 128, 4), "conv4": cube(512, 256, 4)}
)
TRUNK |= batch_norms({"bn2": 128, "bn3": 256, "bn4": 512})
UPWARDS = layers(
    {
        "tp_conv2": cube(256, 512, 3),
        "tp_conv3": cube(128, 256, 3),
        "tp_conv4": cube(64, 128, 3),
        "tp_conv5": cube(1, 64, 3),
    },
    bias=False,
) | batch_norms({"bn1": 512, "bn2": 256, "bn3": 128, "bn4": 64})
SLABS = {"conv2": cube(32, 1, 4), "conv3": cube(64, 32, 4), "conv4": (128, 64, 2, 4, 4), "conv5": (256, 128, 2, 4, 4)}
SLABS |= {"conv6": (512, 256, 1, 4, 4), "conv7": (128, 512, 1, 4, 4), "fc1": (64, 129), "fc2": (1, 64)}
COARSE = {"conv2": cube(64, 1, 4), "conv3": cube(128, 64, 4), "conv4": cube(256, 128, 4), "conv5": cube(1, 256, 4)}
FINE = {1: (512, 512), 2: (512, 512), 3: (256, 512), 4: (128, 256), 5: (64, 128), 6: (32, 64), 7: (1, 32)}
HEAD = {1: (32, 64), 2: (16, 32), 3: (1, 16)}
PUBLISHED = {
    "vae-gan": {
        "generator": UPWARDS | layers({"fc": (49152, 1000)}),
        "encoder": TRUNK
        | layers({f"{h}.{n}": s for h in ("mean", "logvar") for n, s in ((0, (2048, 32768)), (2, (1000, 2048)))}),
        "discriminator": TRUNK | layers({"conv5": cube(1, 512, 4)}),
    },
    "alpha-wgan": {
        "generator": UPWARDS | {"tp_conv1.weight": (1000, 512, 4, 6, 4)},
        "encoder": TRUNK | layers({"conv5": cube(1000, 512, 4)}),
        "discriminator": TRUNK | layers({"conv5": cube(1, 512, 4)}),
        "code_discriminator": layers({"l1.0": (4096, 1000), "l2.0": (4096, 4096), "l3": (1, 4096)})
        | batch_norms({"l1.1": 4096, "l2.1": 4096}),
    },
    "ha-gan": {
        "generator": layers({"fc1": (32768, 1024)})
        | layers({f"tp_conv{n}": cube(*s, 3) for n, s in FINE.items()})
        | group_norms({f"bn{n}": FINE[n][0] for n in range(1, 7)})
        | layers({f"sub_G.tp_conv{n}": cube(*s, 3) for n, s in HEAD.items()})
        | group_norms({f"sub_G.bn{n}": HEAD[n][0] for n in (1, 2)}),
        "discriminator": spectral(SLABS) | spectral({f"sub_D.{k}": v for k, v in COARSE.items()}),
        "encoder": layers({"conv1": cube(32, 1, 4), "conv2": cube(32, 32, 3), "conv3": cube(64, 32, 4)})
        | group_norms({"bn1": 32, "bn2": 32, "bn3": 64}),
        "sub_encoder": layers(
            {
                "conv2": cube(64, 64, 4),
                "conv3": cube(128, 64, 4),
                "conv4": cube(256, 128, 4),
                "conv5": cube(1024, 256, 4),
            }
        )
        | group_norms({"bn2": 64, "bn3": 128, "bn4": 256}),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_full_networks_name_and_shape_their_tensors_as_published(name):
    for module, child in on_paper(name).named_children():
        ours = {k: tuple(v.shape) for k, v in child.state_dict().items() if not k.endswith(checkpoint.COUNTER)}
        assert ours == PUBLISHED[name][module], module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_a_published_generator_alone_is_enough_to_sample(name, tmp_path):
    hollow = {f"module.{k}": torch.zeros(1).expand(v) for k, v in PUBLISHED[name]["generator"].items()}
    torch.save({"model": hollow, "optimizer": {}}, tmp_path / "G_iter50000.pth")
    report = on_paper(name).load_checkpoint(tmp_path / "G_iter50000.pth")
    assert (report.modules, report.missing) == (("generator",), ())


@pytest.mark.parametrize(
    ("name", "changed", "found"),
    [
        ("vae-gan", {"fc.weight": (32768, 1000), "fc.bias": (32768,)}, "(32768, 1000) instead of (49152, 1000)"),
        (
            "alpha-wgan",
            {"tp_conv1.weight": (1000, 512, 4, 4, 4)},
            "(1000, 512, 4, 4, 4) instead of (1000, 512, 4, 6, 4)",
        ),
        ("ha-gan", {"fc1.weight": (32768, 1026)}, "(32768, 1026) instead of (32768, 1024)"),
    ],
    ids=["64³", "64³", "conditional"],
)
def test_published_generators_of_other_sizes_are_refused(name, changed, found, tmp_path):
    shapes = PUBLISHED[name]["generator"] | changed
    torch.save({k: torch.zeros(1).expand(v) for k, v in shapes.items()}, tmp_path / "G.pth")
    with pytest.raises(InputError, match=re.escape(found)) as caught:
        on_paper(name).load_checkpoint(tmp_path / "G.pth")
    assert f"{name} (generator, full grid)" in str(caught.value)


def test_the_discriminator_of_256_cubed_is_refused(tmp_path):
    shapes = PUBLISHED["ha-gan"]["discriminator"] | spectral({"conv1": cube(16, 1, 4), "conv2": cube(32, 16, 4)})
    torch.save({"model": {k: torch.zeros(1).expand(v) for k, v in shapes.items()}}, tmp_path / "D_iter80000.pth")
    with pytest.raises(InputError, match=r"unexpected \(conv1"):
        on_paper("ha-gan").load_checkpoint(tmp_path / "D_iter80000.pth")


def test_a_doubling_convolution_is_one_of_the_doubled_map():
    torch.manual_seed(0)
    conv = DoublingConv(3, 5, bias=True).double()
    h = torch.randn(2, 3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    expected = F.conv3d(F.interpolate(h, scale_factor=2), conv.weight, conv.bias, padding=1)
    assert torch.allclose(conv(h), expected, atol=1e-12)
    for wrt in (h, conv.weight, conv.bias):
        a, b = (torch.autograd.grad(y.square().sum(), wrt, retain_graph=True)[0] for y in (conv(h), expected))
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("shape", [FULL.shape, HALF.shape])
def test_repeating_up_to_the_grid_is_the_published_factor(shape):
    h = torch.arange(64 * 96 * 64.0).view(1, 1, 64, 96, 64)
    factors = tuple(a / b for a, b in zip(shape, (64, 96, 64), strict=True))
    assert torch.equal(F.interpolate(h, size=shape), F.interpolate(h, scale_factor=factors))


@pytest.mark.parametrize("name", ["vae-gan", "alpha-wgan"])
def test_the_last_layer_repeats_voxels(name):
    volume = tiny(name).eval().draw(rng(), None)
    planes = (volume[1:] - volume[:-1]).abs().amax((1, 2))
    assert int((planes == 0).sum()) == 36 - 32


# Sampling and files


@pytest.mark.parametrize("name", NAMES)
def test_published_files_fill_their_modules(name, tmp_path):
    trained, model = tiny(name), tiny(name, seed=1)
    for module, _ in trained.named_children():
        path = publish(trained, module, tmp_path / f"{module}_iter500.pth")
        report = model.load_checkpoint(path)
        assert report.modules == (module,)
        assert report.sha256 == checkpoint.sha256([path])
        assert same(
            {k: v for k, v in state(model).items() if k.startswith(f"{module}.") and checkpoint.COUNTER not in k},
            {k: v for k, v in state(trained).items() if k.startswith(f"{module}.") and checkpoint.COUNTER not in k},
        )
    again = tiny(name, seed=2)
    report = again.load_checkpoint(tmp_path)
    assert (set(report.modules), report.missing) == ({m for m, _ in trained.named_children()}, ())
    assert np.array_equal(next(again.sample(1, 3)), next(model.sample(1, 3)))


def test_of_several_iterations_the_newest_is_read(tmp_path):
    new = tiny("vae-gan", seed=4)
    publish(tiny("vae-gan", seed=3), "generator", tmp_path / "G_VG_ep_95.pth")
    publish(new, "generator", tmp_path / "G_VG_ep_130.pth")
    publish(tiny("vae-gan", seed=5), "encoder", tmp_path / "E_VG_ep_95.pth")
    model = tiny("vae-gan")
    assert set(model.load_checkpoint(tmp_path).modules) == {"generator", "encoder"}
    assert torch.equal(model.generator.fc.weight, new.generator.fc.weight)


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_depends_on_seed_and_index_alone(name, tmp_path):
    model = tiny(name)
    with pytest.raises(InputError, match="no weights"):
        next(model.sample(1, 0))
    model.load_checkpoint(publish(model, "generator", tmp_path / "G.pth"))
    first = list(model.sample(3, seed=7))
    again = list(model.sample(2, seed=7))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=False))
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], next(model.sample(1, seed=8)))
    for volume in first:
        assert (volume.shape, volume.dtype) == (model.grid.shape, np.float32)
        assert -1 <= volume.min() < volume.max() <= 1
    with pytest.raises(InputError, match="one pass"):
        next(model.sample(1, 0, steps=10))


@pytest.mark.parametrize("name", NAMES)
def test_half_generators_are_small_and_come_back_from_their_export(name, tmp_path):
    torch.manual_seed(0)
    model = build(name, "half")
    file = tmp_path / EXPORT
    model.export(file, model.state_dict(), {"step": "3"})
    assert file.stat().st_size < 10e6
    other = build(name, "half")
    assert other.load_checkpoint(file).modules == ("generator",)
    volume = next(other.sample(1, 0))
    assert volume.shape == HALF.shape
    with pytest.raises(InputError, match="checkpoint of grid half, not of full"):
        on_paper(name).load_checkpoint(file)


def broken(kind: str, good: dict[str, Tensor], path: Path) -> str:
    """Write a file with one defect; return what the error says."""
    first, *_, last = good
    changed = {
        "missing": ({k: v for k, v in good.items() if k != first}, f"1 missing \\({first}\\)"),
        "unexpected": (good | {"extra.weight": torch.ones(2)}, r"1 unexpected \(extra.weight\)"),
        "shape": (good | {last: torch.ones(9, 9)}, rf"{last} \(9, 9\) instead of"),
        "nan": (good | {last: good[last] * torch.nan}, "NaN or Inf"),
        "other model": (nn.Linear(3, 4).state_dict(), "another network"),
        "truncated": (good, "truncated"),
    }
    if kind == "malicious":
        path.write_bytes(pickle.dumps(Harm(), protocol=2))
        return "could run code|not a readable"
    torch.save(changed[kind][0], path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-600])
    return changed[kind][1]


class Harm:
    def __reduce__(self):
        return (Path("harmed").touch, ())


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape", "nan", "other model", "truncated", "malicious"])
@pytest.mark.parametrize("name", NAMES)
def test_a_defective_file_is_refused_and_changes_nothing(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, trained = tiny(name), tiny(name, seed=1)
    folder = tmp_path / "weights"
    folder.mkdir()
    said = broken(kind, wrapped(trained.generator), folder / "G_iter1.pth")
    said = said.replace("module.", "")
    publish(trained, "encoder", folder / "E_iter1.pth")  # would fit; loaded first, yet not kept
    before = state(model)
    for path in (folder / "G_iter1.pth", folder):
        with pytest.raises(InputError, match=said) as caught:
            model.load_checkpoint(path)
        assert "G_iter1.pth" in str(caught.value)
    assert same(state(model), before)
    assert not model.filled
    assert not (tmp_path / "harmed").exists()


def test_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        tiny("vae-gan").load_checkpoint(tmp_path / "G.pth")
    with pytest.raises(InputError, match="no weight file"):
        tiny("vae-gan").load_checkpoint(tmp_path)


def test_the_generator_of_another_gan_is_refused(tmp_path):
    for name, other in (("vae-gan", "alpha-wgan"), ("alpha-wgan", "ha-gan"), ("ha-gan", "vae-gan")):
        path = publish(tiny(other), "generator", tmp_path / f"{other}.pth")
        with pytest.raises(InputError, match="another network"):
            tiny(name).load_checkpoint(path)


# Objectives


@pytest.mark.parametrize(
    ("name", "order", "rates"),
    [
        ("vae-gan", ["discriminator", "generator", "encoder"], dict.fromkeys(("generator", "encoder"), 1e-4)),
        (
            "alpha-wgan",
            ["encoder+generator", "discriminator, new", "code_discriminator"],
            dict.fromkeys(("generator", "encoder", "discriminator", "code_discriminator"), 2e-4),
        ),
        (
            "ha-gan",
            ["discriminator", "generator", "encoder", "sub_encoder"],
            {"generator": 1e-4, "discriminator": 4e-4, "encoder": 1e-4, "sub_encoder": 1e-4},
        ),
    ],
)
def test_phases_and_optimisers_are_the_published_ones(name, order, rates):
    model = on_paper(name)
    assert ["+".join(p.trains) + ", new" * p.new_batch for p in model.phases(0.0)] == order
    for module, rate in rates.items():
        optimiser = model.optimiser(module)
        assert isinstance(optimiser, torch.optim.Adam)
        assert optimiser.defaults["lr"] == rate
        assert optimiser.defaults["betas"] == ((0.0, 0.999) if name == "ha-gan" else (0.9, 0.999))
        assert sum(len(g["params"]) for g in optimiser.param_groups) == len(
            list(model.get_submodule(module).parameters())
        )


@pytest.mark.parametrize("name", NAMES)
def test_each_phase_moves_all_of_its_modules_and_no_other(name):
    model = tiny(name).train()
    for phase in model.phases(0.0):
        model.zero_grad(set_to_none=True)
        for module, child in model.named_children():
            child.requires_grad_(module in phase.trains)
        loss = phase.loss(brains(model), rng())
        assert loss.shape == () and torch.isfinite(loss)
        assert loss.item() == phase.loss(brains(model), rng()).item() or name == "ha-gan"  # there u0 moved
        loss.backward()
        moved = {k for k, p in model.named_parameters() if p.grad is not None}
        assert moved == {k for k, _ in model.named_parameters() if k.split(".")[0] in phase.trains}


@pytest.mark.parametrize("name", NAMES)
def test_a_short_training_gives_weights_that_sample(name, tmp_path):
    model = tiny(name)
    volumes = brains(model, 4)[:, 0].numpy()
    before = state(model)
    done = train(model, volumes, tmp_path, Plan(steps=2, seed=0, batch=2), Machine(log_every=1))
    moved = {k.split(".")[0] for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {k for k, _ in model.named_children()}
    other = tiny(name, seed=1)
    other.load_checkpoint(done.export)
    assert np.isfinite(next(other.sample(1, 0))).all()


@pytest.mark.parametrize("name", ["vae-gan", "alpha-wgan"])
def test_reconstructions_get_closer(name):
    model = tiny(name).train()
    batch = torch.full((2, 1, *TINY.shape), -1.0)
    batch[:, :, 8:28, 8:40, 8:28] = 0.5
    phase = next(p for p in model.phases(0.0) if "generator" in p.trains)
    # Faster than published, so that a test sees it.
    optimiser = torch.optim.Adam([p for m in phase.trains for p in model.get_submodule(m).parameters()], lr=1e-2)
    errors = []
    for step in range(12):
        optimiser.zero_grad()
        phase.loss(batch, rng(step)).backward()
        optimiser.step()
        with torch.no_grad():
            code = model.encoder(batch)
            rebuilt = model.generator(code[0] if isinstance(code, tuple) else code)
        errors.append(float((rebuilt - batch).abs().mean()))
    assert errors[-1] < 0.9 * errors[0]


def test_vae_gan_losses_in_closed_form():
    model = tiny("vae-gan")
    batch = brains(model)
    # A discriminator that always says logit c, a generator of zeros, a code with known moments.
    silence(model.discriminator.conv5, model.generator.tp_conv5, model.encoder.mean, model.encoder.logvar)
    c, mean, logvar = 0.3, 0.7, -0.4
    nn.init.constant_(model.discriminator.conv5.bias, c)
    nn.init.constant_(model.encoder.mean[2].bias, mean)
    nn.init.constant_(model.encoder.logvar[2].bias, logvar)
    real, fake = math.log(1 + math.exp(-c)), math.log(1 + math.exp(c))
    error = float(batch.square().mean())
    divergence = 0.5 * (mean**2 + math.exp(logvar) - 1 - logvar)
    losses = [p.loss(batch, rng()).item() for p in model.phases(0.0)]
    assert losses == pytest.approx([real + 2 * fake, 20 * error - 2 * fake, divergence + 10 * error], rel=1e-5)


def test_alpha_wgan_losses_in_closed_form():
    model = tiny("alpha-wgan")
    batch = brains(model)
    silence(model.discriminator.conv5, model.generator.tp_conv5, model.code_discriminator.l3)
    nn.init.constant_(model.discriminator.conv5.bias, 0.3)
    nn.init.constant_(model.code_discriminator.l3.bias, 0.5)
    losses = [p.loss(batch, rng()).item() for p in model.phases(0.0)]
    # Flat critics have slope 0, so every penalty is 10; their constants cancel where they are trained.
    expected = [10 * float(batch.abs().mean()) - 0.5 - 2 * 0.3, 2 * 10, 10]
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(scale):
    slope = torch.randn(7, generator=rng())
    slope *= scale / slope.norm()
    penalty = gradient_penalty(lambda x: x @ slope, torch.randn(4, 7), torch.randn(4, 7), rng())
    assert float(penalty) == pytest.approx((scale - 1) ** 2, abs=1e-6)


def test_gradient_penalty_is_taken_between_the_batches_and_trains_through_normalisation():
    quadratic = nn.Module()
    quadratic.forward = lambda x: x.square().sum(1) / 2  # slope at x is x
    ones = torch.ones(64, 1)
    norms = gradient_penalty(quadratic, 3 * ones, 5 * ones, rng())
    alpha = torch.rand(64, 1, generator=rng())
    assert float(norms.detach()) == pytest.approx(float((3 * alpha + 5 * (1 - alpha) - 1).square().mean()), rel=1e-6)
    model = tiny("alpha-wgan").train()
    gradient_penalty(model.discriminator, brains(model), -brains(model), rng()).backward()
    assert float(model.discriminator.bn2.weight.grad.abs().sum()) > 0


def test_codes_are_normalised_over_the_batch_so_one_volume_cannot_be_trained():
    model = tiny("alpha-wgan").train()
    with pytest.raises(ValueError, match="more than 1 value"):
        model.code_loss(brains(model, 1), rng())
    with pytest.raises(InputError, match="batch of 1 is too small"):
        train(model, brains(model, 4)[:, 0].numpy(), Path("unused"), Plan(steps=1, seed=0, batch=1))


# HA-GAN


class Judge(nn.Module):
    """A discriminator that always says the same, and notes what it was shown."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit, self.shown = logit, []

    def forward(self, slab: Tensor, coarse: Tensor, plane: int) -> Tensor:
        self.shown.append((slab, coarse, plane))
        return torch.full((len(slab), 1), self.logit) + 0 * slab.sum()


def test_ha_gan_losses_in_closed_form():
    model = tiny("ha-gan")
    silence(model.generator.tp_conv7, model.generator.sub_G.tp_conv3)
    model.discriminator = Judge(0.3)
    batch = torch.full((2, 1, *HALF.shape), -0.6)
    batch[:, :, ::4, ::4, ::4] = 0.2  # all that a quarter of the resolution sees
    fine = float(batch[:, :, :12].abs().mean())
    losses = {p.name: p.loss(batch, rng()).item() for p in model.phases(0.0)}
    real, fake = math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.3))
    assert losses["discriminator"] == pytest.approx(real + fake, rel=1e-5)
    assert losses["generator"] == pytest.approx(real, rel=1e-5)
    assert losses["encoder"] == pytest.approx(fine, rel=1e-5)
    assert losses["sub-encoder"] == pytest.approx((fine + 0.2) / 2, rel=1e-5)


def test_real_and_made_are_judged_at_the_same_place():
    model = tiny("ha-gan")
    model.discriminator = Judge(0.0)
    batch = brains(model)
    model.discriminator_loss(batch, rng())
    (slab, coarse, plane), (made, made_coarse, made_plane) = model.discriminator.shown
    assert plane == made_plane
    assert torch.equal(slab, batch[:, :, plane : plane + 12])
    assert torch.equal(coarse, F.interpolate(batch, scale_factor=0.25))
    assert (made.shape, made_coarse.shape) == (slab.shape, coarse.shape) == ((2, 1, 12, 96, 72), (2, 1, 18, 24, 18))


def test_slabs_begin_everywhere_but_at_the_last_place():
    model = on_paper("ha-gan")
    draws = rng()
    planes = {model._plane(draws) for _ in range(3000)}
    assert planes == set(range(120))
    assert model.config.position == 112  # so the position goes up to 119 / 112


def test_a_slab_is_made_from_the_latent_planes_below_its_first():
    model = tiny("ha-gan").eval()
    code = torch.randn(2, 5, generator=rng())
    with torch.no_grad():
        slab, coarse = model.generator(code, 8)
        for plane, equal in ((9, True), (11, True), (12, False)):
            other, other_coarse = model.generator(code, plane)
            assert torch.equal(other, slab) is equal
            assert torch.equal(other_coarse, coarse)
        whole, nothing = model.generator(code)
    assert (whole.shape, nothing) == ((2, 1, *HALF.shape), None)


def test_encoders_bring_a_volume_to_latent_map_and_code():
    model = tiny("ha-gan").eval()
    with torch.no_grad():
        latent = torch.cat([model.encoder(s) for s in brains(model).split(12, dim=2)], dim=2)
        assert latent.shape == (2, 4, 18, 24, 18)
        assert model.sub_encoder(latent).shape == (2, 5)
        slab, coarse = model.generator(latent[:, :, :3])
    assert (slab.shape, coarse) == ((2, 1, 12, 96, 72), None)


def test_the_discriminator_knows_where_a_slab_is():
    torch.manual_seed(0)
    networks = [ha_gan.Discriminator(ha_gan.Config(**vars(HA) | {"position": p})).eval() for p in (60, 120)]
    networks[1].load_state_dict(networks[0].state_dict())
    slab, coarse = torch.randn(2, 1, 12, 96, 72, generator=rng()), torch.randn(2, 1, 18, 24, 18, generator=rng())
    with torch.no_grad():
        assert torch.equal(networks[0](slab, coarse, 30), networks[1](slab, coarse, 60))
        assert not torch.equal(networks[0](slab, coarse, 30), networks[0](slab, coarse, 31))


def test_spectral_norm_follows_the_largest_singular_value_in_training_alone():
    torch.manual_seed(0)
    layer = NormedLinear(6, 4)
    start = layer.u0.clone()
    layer.eval()(torch.ones(1, 6))
    assert torch.equal(layer.u0, start)
    layer.train()
    for _ in range(200):
        layer(torch.ones(1, 6))
    norm = torch.linalg.matrix_norm(layer.weight, 2)
    assert float(layer.sv0) == pytest.approx(float(norm), rel=1e-5)
    divided = layer(torch.eye(6)) - layer.bias
    assert torch.allclose(divided, layer.weight.T / norm, atol=1e-6)
    # One iteration a call: the bias is untouched, and the gradient passes through the singular value.
    (grad,) = torch.autograd.grad(divided.square().sum(), layer.weight)
    assert float((grad * layer.weight).sum()) == pytest.approx(0, abs=1e-5)  # scaling the weight changes nothing


@pytest.mark.parametrize("name", ["vae-gan", "alpha-wgan"])
def test_settling_makes_statistics_those_of_random_codes(name):
    torch.manual_seed(0)
    generator = build(name, "half")
    norms = [m for m in generator.generator.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    for norm in norms:
        norm.running_mean.fill_(7.0)
    generator.settle(torch.Generator().manual_seed(1))
    first = [norm.running_mean.clone() for norm in norms]
    assert all(mean.abs().max() < 5 for mean in first)
    generator.settle(torch.Generator().manual_seed(1))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, first, strict=True))
    codes = torch.randn(8, generator.config.latent, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        settled = float(generator.generator.eval()(codes).std())
        of_the_batch = float(generator.generator.train()(codes).std())
    assert settled == pytest.approx(of_the_batch, rel=0.2)


@pytest.mark.parametrize("name", list(GENERATORS))
def test_what_is_exported_holds_settled_statistics_and_training_keeps_its_own(name):
    torch.manual_seed(0)
    run = Run(build(name, "half"), Plan(10, 0, 2), Fabric(accelerator="cpu", devices=1))
    stale = [run.generator, *run.averages.values()]
    for module in stale:
        for key, value in module.named_buffers():
            if key.endswith("running_mean"):
                value.fill_(7.0)
    exported = {k: v for k, v in run.weights().items() if k.split(".")[0] in run.generator.sampling}
    settled = [v for k, v in exported.items() if k.endswith("running_mean")]
    assert bool(settled) == (name in ("vae-gan", "alpha-wgan"))
    assert all(mean.abs().max() < 5 for mean in settled)
    kept = [v for module in stale for k, v in module.named_buffers() if k.endswith("running_mean")]
    assert all((mean == 7.0).all() for mean in kept)
