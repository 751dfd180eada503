"""Diffusion generators: published sizes and files, schedules in closed form, objectives, sampling, refusals."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import generators
from core.errors import InputError
from core.generators import cdpm, diffusion, medsyn, monai_ldm, slice_unet
from core.generators.base import Generator, read_facts
from core.volume import FULL, HALF, Grid

NAMES = ("monai-ldm", "medsyn", "cdpm")
TINY = Grid("half", (16, 24, 16), 9.0, (0.0, 0.0, 0.0))
TINY_FULL = replace(TINY, name="full")

LDM = replace(
    monai_ldm.LDMConfig(),
    image=(8, 8, 8),
    image_blocks=1,
    image_groups=4,
    widths=(8, 8, 16),
    blocks=1,
    groups=4,
    heads=(0, 8, 16),
    patch=(4, 1),
    crop=(8, 12, 8),
    steps=3,
)
MEDSYN = replace(
    medsyn.MedSynConfig(),
    low_res=replace(medsyn.MedSynConfig.low_res, width=8, multipliers=(1, 2)),
    super_res=replace(medsyn.MedSynConfig.super_res, width=8, multipliers=(1, 2)),
    shrink=(1, 2, 2),
    crop=(8, 8, 8),
    steps=(3, 2),
)
CDPM = replace(
    slice_unet.CDPMConfig(),
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    groups=4,
    attention=(2,),
    rows=(2, 20),
    slices=(1, 13),
    frames=6,
    advance=3,
    steps=2,
)


def tiny(name: str, grid: Grid = TINY) -> Generator:
    torch.manual_seed(0)
    made = {
        "monai-ldm": lambda: monai_ldm.MonaiLDM(grid, LDM),
        "medsyn": lambda: medsyn.MedSyn(grid, MEDSYN),
        "cdpm": lambda: cdpm.CDPM(grid, CDPM),
    }
    return made[name]()


def ready(name: str) -> Generator:
    """Make a generator that may sample; its last layers, zero at first, are made to matter."""
    model = tiny(name)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    if isinstance(model, monai_ldm.MonaiLDM):
        model.denoiser.scale.fill_(2.0)
    model.filled = set(model.sampling)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 2) -> Tensor:
    return torch.rand(n, 1, *TINY.shape, generator=seeded(5)) * 2 - 1


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def published_medsyn(module: str, state: dict[str, Tensor], middles: int) -> dict[str, Tensor]:
    """Name the tensors of one of our networks as the published files do."""
    slots = {ours: number for number, ours in medsyn.SLOTS[module].items()}
    low = module == "low_res"
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"^((?:downs|ups)\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{slots[m[2]]}.", name)
        name = re.sub(r"^mid_norms\.(\d)", lambda m: f"mid_spatial_attn{int(m[1]) + 1}.fn.norm", name)
        name = re.sub(r"^mid_volumes\.(\d)", lambda m: f"mid_temporal_attn{int(m[1]) + 1}", name)
        name = name.replace("final_block.", "final_conv_0." if low else "final_conv0.0.")
        name = re.sub(r"^final_conv\.", "final_conv_1.1." if low else "final_conv0.1.", name)
        if not low:
            name = name.replace("init_conv.", "init_conv0.")
            name = name.replace("mid_spatial_attn1", "mid_spatial_attn").replace(
                "mid_temporal_attn1", "mid_temporal_conv"
            )
        if name.startswith("mid_attention."):
            for k in range(1, middles + 1):
                copy = f"mid_spatial_attn{k if low else ''}.fn.fn.fn."
                found[name.replace("mid_attention.", copy)] = tensor.clone()
        else:
            found[name] = tensor.clone()
    return found


def old_monai(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name tensors as MONAI Generative Models did, which kept no factor."""
    return {
        k.replace("postconv.conv", "conv.conv").replace("out_proj", "to_out.0"): v.clone()
        for k, v in state.items()
        if k != "scale"
    }


# Registry and sizes


@pytest.mark.parametrize("name", NAMES)
def test_registry_entry(name):
    card = generators.GENERATORS[name]
    assert card.label == {"monai-ldm": "MONAI-LDM", "medsyn": "MedSyn", "cdpm": "cDPM"}[name]
    assert card.card.endswith(".") and "doi:10." in card.reference
    model = generators.build(name, "half")
    assert model.name == name and model.grid is HALF and model.steps
    exported = sum(count(model.get_submodule(m)) for m in model.sampling)
    assert 2 * exported < 10e6  # bytes in half precision


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("monai-ldm", {"autoencoder": 13_766_248, "denoiser": 553_168_899}),
        ("medsyn", {"low_res": 480_905_089, "super_res": 54_192_489}),
        ("cdpm", {"denoiser": 89_409_153}),
    ],
)
def test_full_networks_have_the_published_size(name, sizes):
    with torch.device("meta"):
        model = generators.build(name, "full")
    assert {m: count(model.get_submodule(m)) for m in sizes} == sizes
    assert tuple(sizes) == model.sampling


def test_cdpm_with_the_attention_rule_of_128():
    with torch.device("meta"):
        network = slice_unet.SliceUNet(slice_unet.CDPMConfig(attention=(8, 16)))
    assert count(network) == 118_952_833


def test_published_names_and_shapes():
    with torch.device("meta"):
        slices = generators.build("cdpm").denoiser.state_dict()
        syn = generators.build("medsyn")
        ldm = generators.build("monai-ldm")
    shapes = {k: tuple(v.shape) for k, v in slices.items()}
    assert shapes["input_blocks.0.0.weight"] == (128, 2, 3, 3)
    assert shapes["middle_block.1.temporal_attention.rpe_q.rpe_net.embed_distances.weight"] == (512, 3)
    assert {f"input_blocks.{i}.0.op.weight" for i in (3, 6, 9, 12)} <= shapes.keys()
    assert {f"output_blocks.{i}.1.conv.weight" for i in (2, 5, 8, 11)} <= shapes.keys()
    low = published_medsyn("low_res", syn.low_res.state_dict(), 4)
    assert tuple(low["init_conv.weight"].shape) == (64, 1, 7, 7, 7)
    assert tuple(low["downs.3.1.weight"].shape) == (512, 512, 4, 4, 4)
    assert {"mid_spatial_attn4.fn.fn.fn.to_out.weight", "final_conv_1.1.bias", "ups.3.3.mlp.1.weight"} <= low.keys()
    high = published_medsyn("super_res", syn.super_res.state_dict(), 1)
    assert tuple(high["init_conv0.weight"].shape) == (56, 2, 7, 7, 7)
    assert {"downs.2.5.weight", "mid_spatial_attn.fn.norm.gamma", "final_conv0.1.weight"} <= high.keys()
    old = old_monai(ldm.autoencoder.state_dict())
    assert tuple(old["encoder.blocks.4.nin_shortcut.conv.weight"].shape) == (128, 64, 1, 1, 1)
    assert tuple(old["decoder.blocks.13.conv.weight"].shape) == (1, 64, 3, 3, 3)
    assert tuple(old["quant_conv_log_sigma.conv.weight"].shape) == (3, 3, 1, 1, 1)
    told = old_monai(ldm.denoiser.state_dict())
    assert tuple(told["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"].shape) == (512, 4)


# Schedules


def test_schedules_in_closed_form():
    linear = diffusion.linear_alphabar(1e-4, 0.02)
    assert linear.dtype == torch.float64 and len(linear) == 1000
    assert float(linear[1]) == pytest.approx((1 - 1e-4) * (1 - 1e-4 - (0.02 - 1e-4) / 999), abs=1e-15)
    scaled = diffusion.linear_alphabar(0.0015, 0.0205, scaled=True)
    assert float(1 - scaled[0]) == pytest.approx(0.0015)
    assert float(1 - scaled[-1] / scaled[-2]) == pytest.approx(0.0205)
    cosine = diffusion.cosine_alphabar(torch.tensor([0.0, 0.5, 1.0]), 0.0)
    assert cosine.tolist() == pytest.approx([math.cos(t * math.pi / 2) ** 2 for t in (0.008 / 1.008, 0.508 / 1.008, 1)])
    assert diffusion.cosine_alphabar(torch.tensor([0.0, 1.0]), 1e-3).tolist() == [0.999, 0.001]


def test_published_times():
    assert diffusion.spread_times(1000) == list(range(999, -1, -1))
    assert diffusion.strided_times(50) == list(range(980, -1, -20))
    assert diffusion.continuous_times(51) == [t / 1000 for t in range(1000, -1, -20)]
    assert diffusion.continuous_times(31) == [t / 1000 for t in range(990, -1, -33)]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 64, 333, 600, 999, 1000])
def test_any_number_of_steps_starts_in_noise_and_never_rises(steps):
    for times, last in (
        (diffusion.spread_times(steps), 999),
        (diffusion.strided_times(steps), 999),
        ([1000 * t for t in diffusion.continuous_times(steps)], 1000),
    ):
        assert len(times) == len(set(times)) == steps and times == sorted(times, reverse=True)
        assert last - 20 <= times[0] <= last and (times[-1] == 0 or steps == 1)


def test_too_many_steps_are_refused():
    for times in (diffusion.spread_times, diffusion.strided_times, diffusion.continuous_times):
        with pytest.raises(InputError, match="at most 1000 steps"):
            times(2000)


def test_steps_recover_what_made_the_noise():
    clean, noise = torch.randn(2, 1, 3, 4, 5, generator=seeded()).double().chunk(2)
    alphabar, before = 0.3, 0.7
    noisy = diffusion.noised(clean, noise, torch.tensor([alphabar], dtype=torch.float64))
    assert torch.allclose(diffusion.without_noise(noisy, noise, alphabar), clean)
    expected = diffusion.noised(clean, noise, torch.tensor([before], dtype=torch.float64))
    assert torch.allclose(diffusion.ddim_step(noisy, clean, alphabar, before), expected)
    for step in (diffusion.ddim_step(noisy, clean, 0.3, 1.0), diffusion.ancestral_step(noisy, clean, 0.3, 1.0, noise)):
        assert torch.allclose(step, clean)


@pytest.mark.parametrize("steps", [8, 1000])
def test_chains_of_a_known_normal(steps):
    # Data N(0, s²): the best guess of the clean value is linear, so that the variance of a chain is known exactly.
    wanted, alphabars = 0.25, diffusion.linear_alphabar(1e-4, 0.02)
    ancestral, still = 1.0, 1.0
    one, none = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _, a, b in diffusion.pairs(alphabars, diffusion.spread_times(steps)):
        guess = math.sqrt(a) * wanted / (a * wanted + 1 - a) * one
        slope, jump = diffusion.ancestral_step(one, guess, a, b, none), diffusion.ancestral_step(none, none, a, b, one)
        ancestral = float(slope**2 * ancestral + jump**2)
        still *= float(diffusion.ddim_step(one, guess, a, b) ** 2)
    if steps == 1000:
        assert (still, ancestral) == pytest.approx((wanted, wanted), rel=0.01)
    else:  # few steps narrow the spread without noise, and widen it with the larger variance
        assert 0.3 * wanted < still < wanted < ancestral


# Files


@pytest.mark.parametrize(
    ("wrap", "module"),
    [("bare", "autoencoder"), ("module", "autoencoder"), ("state_dict", "denoiser"), ("model", "denoiser")],
)
def test_old_names_of_the_bundle(wrap, module, tmp_path):
    source, path = ready("monai-ldm"), tmp_path / "model.pt"
    old = old_monai(source.get_submodule(module).state_dict())
    prefixed = {f"module.{k}": v for k, v in old.items()}
    torch.save({"bare": old, "module": prefixed}.get(wrap, {wrap: prefixed}), path)
    model = tiny("monai-ldm")
    assert model.load_checkpoint(path).modules == (module,)
    for name, tensor in model.get_submodule(module).state_dict().items():
        expected = torch.ones(()) if name == "scale" else source.get_submodule(module).state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_old_names_are_those_that_monai_translates():
    source = ready("monai-ldm")
    for module in ("autoencoder", "denoiser"):
        old = old_monai(source.get_submodule(module).state_dict())
        ours = tiny("monai-ldm").translate(module, dict(old))
        network = tiny("monai-ldm").get_submodule(module)
        network.load_old_state_dict({**old, **({"scale": torch.ones(())} if module == "denoiser" else {})})
        assert all(torch.equal(ours[k], v) for k, v in network.state_dict().items())


def test_medsyn_published_files(tmp_path):
    source, model = ready("medsyn"), tiny("medsyn")
    low = published_medsyn("low_res", source.low_res.state_dict(), 4)
    torch.save(low, tmp_path / "low_res_unet_3.pt")
    assert model.load_checkpoint(tmp_path / "low_res_unet_3.pt").missing == ("super_res",)
    folder = tmp_path / "20_ckpt"
    folder.mkdir()
    raw = {f"denoise_fn.{k}": v for k, v in published_medsyn("super_res", source.super_res.state_dict(), 1).items()}
    schedule = {"betas": torch.rand(5), "ddim_sigmas": torch.rand(5)}
    torch.save({**{k: v + 1 for k, v in raw.items()}, **schedule}, folder / "pytorch_model.bin")
    torch.save({**raw, **schedule}, folder / "pytorch_model_1.bin")
    torch.save({"state": {}, "param_groups": []}, folder / "optimizer.bin")
    assert model.load_checkpoint(folder).missing == ()
    for ours, theirs in ((model.low_res, source.low_res), (model.super_res, source.super_res)):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_medsyn_copies_of_the_attention_must_agree(tmp_path):
    low = published_medsyn("low_res", ready("medsyn").low_res.state_dict(), 4)
    low["mid_spatial_attn3.fn.fn.fn.to_out.weight"] += 1
    torch.save(low, tmp_path / "low.pt")
    with pytest.raises(InputError, match=r"1 unexpected \(mid_spatial_attn3"):
        tiny("medsyn").load_checkpoint(tmp_path / "low.pt")


def published_settings(**changes: object) -> dict[str, object]:
    """Return a config as published containers hold it."""
    known = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "num_heads": 2, "max_frames": 4}
    return {**known, "attention_resolutions": "16,8", "lr": 1e-4, "resume": "", **changes}


def test_cdpm_is_rebuilt_from_its_config(tmp_path):
    config = slice_unet.CDPMConfig(channels=32, multipliers=(1, 2, 2, 2), blocks=1, heads=2, attention=(2, 4))
    network = slice_unet.SliceUNet(config)
    path = tmp_path / "ema_0.9999_000200.pt"
    torch.save({"state_dict": network.state_dict(), "config": published_settings(), "step": 200}, path)
    torch.save(
        {"state_dict": network.state_dict(), "config": published_settings(), "step": 9}, tmp_path / "model000200.pt"
    )
    torch.save({"state": {}}, tmp_path / "opt000200.pt")
    model = tiny("cdpm", TINY_FULL)
    report = model.load_checkpoint(tmp_path)
    assert report.missing == () and (model.config.frames, model.config.advance) == (4, 2)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in model.denoiser.state_dict().items())
    with pytest.raises(InputError, match="another network"):
        tiny("cdpm").load_checkpoint(path)  # published files are of the full grid


@pytest.mark.parametrize("wrong", [{"image_size": 77}, {"attention_resolutions": "a"}, {"num_res_blocks": 2}])
def test_cdpm_with_a_config_that_does_not_fit_stays_as_it_was(wrong, tmp_path):
    model = tiny("cdpm", TINY_FULL)
    before = model.denoiser, model.config
    network = slice_unet.SliceUNet(
        slice_unet.CDPMConfig(channels=32, multipliers=(1, 2, 2, 2), blocks=1, heads=2, attention=(2, 4))
    )
    torch.save({"state_dict": network.state_dict(), "config": published_settings(**wrong)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"m\.pt.*(config does not describe|another network)"):
        model.load_checkpoint(tmp_path / "m.pt")
    assert (model.denoiser, model.config) == before and not model.filled


@pytest.mark.parametrize("name", NAMES)
def test_export_and_load(name, tmp_path):
    source, path = ready(name), tmp_path / "w.safetensors"
    source.export(path, source.state_dict(), {"steps": "5"})
    assert read_facts(path) == {"steps": "5", "model": name, "grid": "half"}
    model = tiny(name)
    assert model.load_checkpoint(path).missing == ()
    for module in model.sampling:
        for key, tensor in model.get_submodule(module).state_dict().items():
            assert torch.equal(tensor, source.get_submodule(module).state_dict()[key].half().float())
    with pytest.raises(InputError, match="checkpoint of grid half, not of full"):
        tiny(name, TINY_FULL).load_checkpoint(path)
    other = tiny(NAMES[NAMES.index(name) - 1])
    with pytest.raises(InputError, match=f"checkpoint of model {name}"):
        other.load_checkpoint(path)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape", "nan", "truncated", "pickle", "config"])
@pytest.mark.parametrize("name", NAMES)
def test_bad_files_change_nothing(name, kind, tmp_path):
    model, path, marker = tiny(name, TINY_FULL), tmp_path / "bad.pt", tmp_path / "executed"
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v.clone() for k, v in ready(name).get_submodule(model.sampling[0]).state_dict().items()}
    first = next(k for k, v in state.items() if v.ndim > 1)
    if kind == "missing":
        state.pop(first)
    elif kind == "unexpected":
        state["other.weight"] = torch.zeros(2)
    elif kind == "shape":
        state[first] = torch.zeros(7, 7)
    elif kind == "nan":
        state[first][:] = torch.nan
    torch.save({"state_dict": state, "config": Payload(marker)} if kind == "config" else state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:999])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    words = {"missing": "1 missing", "unexpected": "1 unexpected", "shape": "of another shape", "nan": "NaN"}
    words |= {"truncated": "truncated", "pickle": "could run code", "config": "could run code"}
    with pytest.raises(InputError, match=rf"bad\.pt.*{words[kind]}"):
        model.load_checkpoint(path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not marker.exists() and not model.filled


# Sampling


@pytest.mark.parametrize("name", NAMES)
def test_samples(name):
    model = ready(name)
    first, second = model.sample(2, seed=3)
    assert first.shape == TINY.shape and first.dtype == np.float32 and np.ptp(first) > 0
    assert first.min() >= -1 and first.max() <= 1
    assert np.array_equal(first, next(model.sample(1, seed=3)))
    assert not np.array_equal(first, second) and not np.array_equal(first, next(model.sample(1, seed=4)))
    assert not np.array_equal(first, next(model.sample(1, seed=3, steps=4)))


@pytest.mark.parametrize("steps", [None, 1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_calls_are_counted(name, steps):
    model, calls = ready(name), []
    for module in ("denoiser", "low_res", "super_res"):
        if hasattr(model, module):
            model.get_submodule(module).register_forward_hook(lambda *_: calls.append(1))
    next(model.sample(1, seed=0, steps=steps))
    assert len(calls) == model.calls(steps)


def test_published_numbers_of_calls():
    with torch.device("meta"):
        made = {name: generators.build(name) for name in NAMES}
    assert made["monai-ldm"].calls(None) == 50
    assert made["medsyn"].calls(None) == 51 + 31
    assert made["cdpm"].calls(None) == 13 * 1000


@pytest.mark.parametrize("name", ["monai-ldm", "cdpm"])
def test_what_is_predicted_is_a_setting(name, monkeypatch):
    # A network that always says 0.25: as the clean value it is the sample, as the noise it is not.
    made = {}
    for clean in (True, False):
        model = ready(name)
        model.config = (
            replace(model.config, predict_clean=clean, ancestral=False)
            if name == "cdpm"
            else replace(model.config, predict_clean=clean)
        )
        channels = 3 if name == "monai-ldm" else None
        monkeypatch.setattr(model.denoiser, "forward", lambda x, *_, n=channels: torch.full_like(x[:, :n], 0.25))
        if name == "monai-ldm":
            monkeypatch.setattr(model.autoencoder, "decode", lambda z: (F.interpolate(z[:, :1], TINY.shape) + 1) / 2)
            made[clean] = 2.0 * next(model.sample(1, seed=0))  # the factor of `ready`
        else:
            made[clean] = next(model.sample(1, seed=0))[:, 2:22, 1:14]
    assert np.allclose(made[True], 0.25) and not np.allclose(made[False], 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_too_many_steps_and_missing_weights_are_refused(name):
    with pytest.raises(InputError, match="1 to 1000"):
        next(ready(name).sample(1, seed=0, steps=5000))
    with pytest.raises(InputError, match="no weights"):
        next(tiny(name).sample(1, seed=0))


# MONAI-LDM


def test_divergence_in_closed_form():
    mean, deviation = torch.full((2, 3, 2, 2, 2), 0.5), torch.full((2, 3, 2, 2, 2), 2.0)
    expected = 24 * 0.5 * (0.25 + 4 - math.log(4) - 1)
    assert float(monai_ldm.divergence(mean, deviation)) == pytest.approx(expected)
    assert float(monai_ldm.divergence(0 * mean, deviation / 2)) == 0


def test_ldm_stages():
    model = tiny("monai-ldm")
    trained = [[p.trains for p in model.phases(progress)] for progress in (0.0, 0.3, 0.5)]
    assert trained == [[("autoencoder",)], [("autoencoder",), ("discriminator",)], [("denoiser",)]]


@pytest.mark.parametrize(("progress", "index", "moved"), [(0.3, 1, "discriminator"), (0.9, 0, "denoiser")])
def test_ldm_gradients_stay_in_their_module(progress, index, moved):
    model = tiny("monai-ldm")
    model.phases(progress)[index].loss(batch(), seeded()).backward()
    touched = {k.split(".")[0] for k, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {moved}


def test_ldm_factor_brings_the_first_latent_to_unit_variance():
    model = tiny("monai-ldm")
    assert float(model.denoiser.scale) == 0
    noise_loss = model.phases(0.9)[0].loss
    noise_loss(batch(), seeded())
    noise = torch.randn(2, 3, 4, 6, 4, generator=seeded())
    latent = model.autoencoder((batch() + 1) / 2, noise, decode=False)[0]
    assert float(model.denoiser.scale * latent.detach().std()) == pytest.approx(1.0, abs=1e-5)
    kept = model.denoiser.scale.clone()
    noise_loss(batch() * 0.5, seeded())
    assert torch.equal(model.denoiser.scale, kept)


def test_ldm_untrained_denoiser_has_unit_loss():
    loss = tiny("monai-ldm").phases(0.9)[0].loss(batch(), seeded())  # its last layer is zero: the loss is that of 0
    assert float(loss.detach()) == pytest.approx(1.0, abs=0.15)


def test_ldm_pads_the_latent_of_the_full_grid():
    with torch.device("meta"):
        model = generators.build("monai-ldm")
    assert model._shape == (18, 24, 18) and model._padded == (20, 24, 20)
    latent = torch.randn(1, 3, 18, 24, 18)
    padded = model._enlarged(latent)
    assert padded.shape[2:] == (20, 24, 20) and torch.equal(padded[:, :, 1:-1, :, 1:-1], latent)
    assert torch.equal(model._cropped(padded), latent) and float(padded[:, :, 0].abs().sum()) == 0


def test_ldm_conditions_are_numbers_from_0_to_1_and_sex_is_one_of_two():
    drawn = tiny("monai-ldm")._conditions(200, seeded())
    assert drawn.shape == (200, 4) and drawn.min() >= 0 and drawn.max() <= 1
    assert set(drawn[:, 0].tolist()) == {0.0, 1.0} and len(drawn[:, 1].unique()) > 190


# MedSyn


@pytest.mark.parametrize("least", [0.1, 1.0])
def test_medsyn_loss_of_a_known_network(least, monkeypatch):
    model = tiny("medsyn")
    model.config = replace(model.config, least_weight=least)
    monkeypatch.setattr(model.low_res, "forward", lambda x, time: torch.zeros_like(x))
    clean = F.interpolate(batch(1), (16, 12, 8))
    time = torch.rand(1, generator=seeded())
    alphabar = float(diffusion.cosine_alphabar(time, 0.0))
    weight = min(max(math.sqrt(alphabar / (1 - alphabar)), least), 1.0)
    assert float(model.phases(0)[0].loss(batch(1), seeded())) == pytest.approx(
        weight**2 * float(clean.square().mean()), rel=1e-5
    )


def test_medsyn_super_resolution_sees_a_degraded_copy_first(monkeypatch):
    model, seen = tiny("medsyn"), []
    model.config = replace(model.config, blur=0.0)
    monkeypatch.setattr(model.super_res, "forward", lambda x, time: seen.append(x) or x[:, :1])
    model.phases(0)[1].loss(batch(1), seeded())
    given = seen[0][:, 0]  # two crops of the one volume
    assert given.shape == (2, 8, 8, 8)
    blocks = given.unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)
    assert torch.equal(blocks.amin(-1), blocks.amax(-1))


@pytest.mark.parametrize("index", [0, 1])
def test_medsyn_phases_train_one_network_each(index):
    model = tiny("medsyn")
    phase = model.phases(0.5)[index]
    assert phase.trains == (model.sampling[index],) and phase.clip == 1.0
    phase.loss(batch(), seeded()).backward()
    touched = {k.split(".")[0] for k, p in model.named_parameters() if p.grad is not None}
    assert touched == set(phase.trains)


def test_medsyn_attention_stays_within_a_sagittal_slice():
    attention = medsyn.SliceAttention(8, 2)
    x = torch.randn(1, 8, 3, 4, 4)
    moved = x.clone()
    moved[:, :, 1] += 1
    change = (attention(moved) - attention(x)).abs().amax((0, 1, 3, 4))
    assert change[1] > 0 and change[0] == change[2] == 0


def test_medsyn_order_of_the_way_up_is_a_switch():
    config = MEDSYN.super_res
    network, other = medsyn.UNet(config), medsyn.UNet(replace(config, upsample_last=True))
    other.load_state_dict(network.state_dict())
    x, time = torch.randn(1, 2, 4, 8, 8), torch.tensor([500.0])
    assert network(x, time).shape == other(x, time).shape and not torch.allclose(network(x, time), other(x, time))


def test_medsyn_last_evaluation_is_the_result(monkeypatch):
    model = ready("medsyn")
    monkeypatch.setattr(model.low_res, "forward", lambda x, time: torch.full_like(x, 0.25))
    monkeypatch.setattr(model.super_res, "forward", lambda x, time: x[:, :1] * 3)
    assert np.allclose(next(model.sample(1, seed=0)), 0.75)


# cDPM


def test_cdpm_stages_cover_every_slice_once():
    with torch.device("meta"):
        stages = generators.build("cdpm").stages()
    assert len(stages) == 13 and [i for _, new in stages for i in new] == list(range(1, 131))
    assert stages[0] == ([0], list(range(1, 11))) and stages[1][0] == list(range(1, 11))


def test_cdpm_slices_there_and_back():
    model = tiny("cdpm")
    volumes = batch(1)
    stack = model._stack(volumes)
    assert stack.shape == (1, 14, 1, 20, 16) and bool((stack[:, 0] == -1).all())
    back = model._unstack(stack[0, 1:, 0])
    inside = back[:, 2:22, 1:14]
    assert torch.equal(inside, volumes[0, 0, :, 2:22, 1:14])
    assert float((back == -1).sum()) >= back.numel() - inside.numel()


def test_cdpm_window_is_that_of_the_published_data():
    config = slice_unet.CDPMConfig()
    assert config.rows[1] == 176 and config.slices == (3 + 4, 130)  # 138 slices lie at 3 in the grid, 4..133 are taken
    assert config.rows[0] == 8 and FULL.shape[0] == 144


@pytest.mark.parametrize("seed", range(20))
def test_cdpm_draws_indices_within_bounds(seed):
    rng = seeded(seed)
    for _ in range(20):
        drawn = cdpm.draw_indices(131, 20, rng)
        assert 1 <= len(drawn) <= 20 and drawn == sorted(drawn) and drawn[0] >= 0 and drawn[-1] < 131
        given, wanted = cdpm.draw_roles(131, 20, rng)
        assert wanted and len(given) + len(wanted) <= 20 and len(set(given + wanted)) == len(given + wanted)


def test_cdpm_batches_hold_own_slices_and_fill_with_the_next_volume():
    stacks = torch.arange(2.0)[:, None, None, None, None].expand(2, 14, 1, 4, 4) * 100 + torch.arange(14.0).reshape(
        1, 14, 1, 1, 1
    )
    clean, observed, target, indices = cdpm.draw_slices(stacks, 6, seeded(2))
    values = clean[:, :, 0, 0, 0]
    for i in range(2):
        own = (observed + target)[i] > 0
        assert torch.equal(values[i, own], 100.0 * i + indices[i, own])
        assert torch.equal(values[i, ~own], 100.0 * (1 - i) + indices[i, ~own])
    assert not bool((observed * target).any())


def test_cdpm_loss_skips_observed_slices(monkeypatch):
    model = tiny("cdpm")
    seen = {}

    def answer(noisy, clean, observed, target, time, indices):
        seen["share"] = float(1 - observed.mean())
        return torch.zeros_like(noisy)

    monkeypatch.setattr(model.denoiser, "forward", answer)
    loss = float(model.phases(0)[0].loss(batch(), seeded(3)))
    assert loss == pytest.approx(seen["share"], rel=0.1)  # mean of squared noise, not divided by the targets


def test_cdpm_padding_slices_are_not_attended_to():
    attention = slice_unet.SliceAttention(8, 2, 4, 16)
    q, k, v = torch.randn(3, 1, 6, 2, 4, 4, generator=seeded())
    context = slice_unet.Context(torch.randn(4, 16), torch.tensor([[1.0, 1, 1, 0]]), torch.tensor([[3.0, 4, 5, 9]]))
    before = attention.mix(q, k, v, context)
    after = attention.mix(q, k, v + torch.tensor([0.0, 0, 0, 1])[:, None], context)
    change = (after - before).detach().abs().amax((0, 1, 2, 4))
    assert change[3] > 0 and float(change[:3].max()) == 0


def test_cdpm_observed_slices_inform_the_others_and_their_noise_is_not_seen():
    network = ready("cdpm").denoiser
    x = torch.randn(1, 3, 1, 8, 8, generator=seeded())
    observed = torch.tensor([[1.0, 0, 0]])
    arguments = (observed, 1 - observed, torch.tensor([40]), torch.tensor([[3, 4, 5]]))
    first = torch.tensor([1.0, 0, 0])[:, None, None, None]
    with torch.no_grad():
        same = network(x, x, *arguments)
        assert torch.equal(network(x + first, x, *arguments), same)
        assert float((network(x, x + first, *arguments) - same)[:, 1].abs().max()) > 0
        assert torch.equal(network(x, x + (1 - first), *arguments), same)


def test_cdpm_attention_residual_starts_from_the_normalised_input():
    block = slice_unet.Attention(8, 2, 4)  # its projection is zero
    x = torch.randn(1, 2, 5, 8) * 3 + 1
    context = slice_unet.Context(torch.zeros(2, 4), torch.ones(1, 2), torch.zeros(1, 2))
    expected = F.group_norm(x.flatten(0, 1).mT, 4).mT.reshape(x.shape)
    assert torch.allclose(block(x, context), expected, atol=1e-5)


# Training


@pytest.mark.parametrize("name", NAMES)
def test_training_steps_lower_the_loss(name):
    model = tiny(name).train()
    progress = 0.0 if name == "monai-ldm" else 0.5
    phase = model.phases(progress)[-1]
    optimiser = torch.optim.Adam(model.get_submodule(phase.trains[0]).parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = phase.loss(batch(), seeded(1))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(map(math.isfinite, losses)) and losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_losses_follow_the_seed_and_every_module_has_an_optimiser(name):
    model = tiny(name)
    for progress in (0.0, 0.3, 0.9):
        for phase in model.phases(progress):
            once, again, other = (float(phase.loss(batch(), seeded(s)).detach()) for s in (1, 1, 2))
            assert once == again != other
            for module in phase.trains:
                assert model.optimiser(module).param_groups[0]["lr"] == 1e-4


def test_published_optimisers_and_averages():
    with torch.device("meta"):
        made = {name: generators.build(name) for name in NAMES}
    assert made["cdpm"].averaging["denoiser"].decay == 0.9999 and not made["monai-ldm"].averaging
    assert [(a.decay, a.every, a.start) for a in made["medsyn"].averaging.values()] == [
        (0.995, 2, 10000),
        (0.995, 10, 10000),
    ]
    decays = {name: m.optimiser(m.sampling[-1]).param_groups[0]["weight_decay"] for name, m in made.items()}
    assert decays == {"cdpm": 0.0, "medsyn": 0.01, "monai-ldm": 0}
