"""The training loop, on a generator small enough to train in a second."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.errors import InputError, JobFailed
from core.generators import training
from core.generators.base import Averaging, Generator, Phase, normal, read_facts
from core.generators.training import CHECKPOINT, CURVE, EXPORT, Machine, Plan, read_curve, train
from core.volume import Grid

GRID = Grid("tiny", (4, 6, 4), 36.0, (0.0, 0.0, 0.0))
OFTEN = Machine(log_every=4, save_every=0.0)


class Toy(Generator):
    """A mean volume learnt by least squares, and an adversary that sees a new batch."""

    name = "toy"
    least_batch = 2
    batch = 2

    def __init__(self, grid: Grid = GRID) -> None:
        super().__init__(grid)
        self.generator = nn.Linear(3, int(np.prod(grid.shape)))
        self.critic = nn.Linear(int(np.prod(grid.shape)), 1)
        self.averaging = {"generator": Averaging(0.5, every=2)}

    def optimiser(self, module):
        return torch.optim.Adam(self.get_submodule(module).parameters(), lr=0.05)

    def phases(self, progress):
        def fit(batch, rng):
            made = self.generator(normal((len(batch), 3), rng, batch.device))
            return (made - batch.flatten(1)).square().mean()

        def judge(batch, rng):
            made = self.generator(normal((len(batch), 3), rng, batch.device))
            return self.critic(made).mean() - self.critic(batch.flatten(1)).mean()

        return [Phase("fit", ("generator",), fit, clip=1.0), Phase("judge", ("critic",), judge, new_batch=True)]

    def draw(self, rng, steps):
        return torch.tanh(self.generator(normal((1, 3), rng, "cpu"))).view(self.grid.shape)


class Volumes:
    def __init__(self, n: int = 6, shape: tuple[int, ...] = GRID.shape) -> None:
        self.data = np.random.default_rng(0).uniform(-1, 1, (n, *shape)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        return self.data[index]


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def plan(**changes) -> Plan:
    return Plan(**{"steps": 24, "seed": 3, "batch": 2, **changes})


def stop_after(steps: int):
    left = iter(range(steps - 1))
    return lambda: next(left, None) is None


def losses(out: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_curve(out)]


def test_training_lowers_the_loss_and_exports_the_average(tmp_path):
    generator = toy()
    done = train(generator, Volumes(), tmp_path, plan(steps=80), OFTEN)
    curve = read_curve(tmp_path)
    assert float(curve[-1]["fit"]) < 0.6 * float(curve[0]["fit"])
    assert (done.step, done.export) == (80, tmp_path / EXPORT)
    other = toy()
    other.load_checkpoint(done.export)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    average = state["averages"]["generator"]["module.weight"]
    assert torch.allclose(other.generator.weight, average.half().float())
    assert not torch.allclose(other.generator.weight, state["model"]["generator.weight"], atol=1e-4)
    assert read_facts(done.export)["step"] == "80"


def test_a_run_folder_means_its_export_and_never_the_raw_weights(tmp_path):
    done = train(toy(), Volumes(), tmp_path, plan(), OFTEN)
    folder, export = toy(), toy()
    assert folder.load_checkpoint(tmp_path) == export.load_checkpoint(done.export)
    assert torch.equal(folder.generator.weight, export.generator.weight)
    with pytest.raises(InputError, match="not those it exports"):
        toy().load_checkpoint(tmp_path / CHECKPOINT)


def test_a_run_says_each_step_saves_the_first_and_logs_the_last(tmp_path):
    said = []

    def report(fraction, message):
        said.append((round(fraction * 7), message.partition(":")[0]))
        assert (tmp_path / CHECKPOINT).exists() == (len(said) > 1)

    train(toy(), Volumes(), tmp_path, plan(steps=7), Machine(log_every=4, save_every=1e9), report=report)
    assert said == [*((step, f"step {step} of 7") for step in range(1, 8)), (7, "step 7 of 7")]
    assert [row["step"] for row in read_curve(tmp_path)] == ["4", "7"]
    train(toy(), Volumes(), tmp_path, plan(steps=8), Machine(log_every=4), resume=True)
    assert [row["step"] for row in read_curve(tmp_path)] == ["4", "8"]


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(InputError, match="bf16-mixed"):
        train(toy(), Volumes(), tmp_path / "out", plan(), Machine(precision="8bit"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", [1, 5, 8, 23])
def test_a_run_stopped_and_resumed_equals_one_that_was_not(at, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(toy(), Volumes(), whole, plan(), OFTEN)
    first = train(toy(), Volumes(), parts, plan(), OFTEN, stop=stop_after(at))
    assert first.step == at
    train(toy(), Volumes(), parts, plan(), OFTEN, resume=True)
    assert losses(parts) == losses(whole)
    one, two = (torch.load(f / CHECKPOINT, weights_only=True) for f in (whole, parts))
    assert all(torch.equal(one["model"][k], two["model"][k]) for k in one["model"])
    assert all(torch.equal(one["averages"]["generator"][k], v) for k, v in two["averages"]["generator"].items())


def test_a_killed_process_loses_only_the_steps_since_its_last_checkpoint(tmp_path):
    script = (
        "import sys, time; sys.path.insert(0, 'tests'); import test_generators_training as t\n"
        "from pathlib import Path\n"
        "def slow(fraction, message): time.sleep(0.05)\n"
        "machine = t.Machine(log_every=1, save_every=0.2)\n"
        "t.train(t.toy(), t.Volumes(), Path(sys.argv[1]), t.plan(steps=60), machine, resume=True, report=slow)\n"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", script, str(out)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, env=environment)
    try:
        while not (out / CHECKPOINT).exists():
            assert process.poll() is None, "the run ended before its first checkpoint"
    finally:
        process.kill()
        process.wait()
    assert 0 < torch.load(out / CHECKPOINT, weights_only=True)["step"] < 60
    subprocess.run(command, env=environment, check=True)
    whole = tmp_path / "whole"
    train(toy(), Volumes(), whole, plan(steps=60), Machine(log_every=1))
    assert losses(out) == losses(whole)


class Mean(Toy):
    """Fits its bias to the volumes, without draws."""

    def phases(self, progress):
        def fit(batch, rng):
            return (self.generator.bias - batch.flatten(1)).square().mean()

        return [Phase("fit", ("generator",), fit)]


class LateMean(Mean):
    """Its second process is late with every step."""

    def optimiser(self, module):
        optimiser = super().optimiser(module)
        optimiser.register_step_post_hook(lambda *_: time.sleep(0.2 * second_process()))
        return optimiser


class LostMean(Mean):
    """The loss of its second process is not finite."""

    def phases(self, progress):
        (phase,) = super().phases(progress)
        return [replace(phase, loss=lambda batch, rng: phase.loss(batch, rng) / (1 - second_process()))]


def second_process() -> bool:
    return os.environ.get("LOCAL_RANK") == "1"


def train_twice(folder, generator: str, stop: str = "None") -> subprocess.CompletedProcess:
    """Train in two processes; each writes to its own stderr what it could not do."""
    script = folder / "two.py"
    script.write_text(
        "import sys; sys.path.insert(0, 'tests'); import test_generators_training as t; from pathlib import Path\n"
        f"t.torch.manual_seed(0); stop = {stop} or (lambda: False)\n"
        "machine = t.Machine(devices=2, log_every=4)\n"
        f"t.train(t.{generator}(), t.Volumes(8), Path(sys.argv[1]), t.plan(batch=2), machine, stop=stop)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), str(folder / "two")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_two_processes_equal_one_with_a_batch_of_both(tmp_path):
    """Also where the second sees the files of the first before it would write them, and where it alone is stopped."""
    ended = train_twice(tmp_path, "LateMean", "t.stop_after(12 if t.second_process() else 99)")
    assert ended.returncode == 0, ended.stderr
    torch.manual_seed(0)
    one = Mean()
    train(one, Volumes(8), tmp_path / "one", plan(batch=4), OFTEN, stop=stop_after(12))
    state = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)["model"]
    assert torch.allclose(state["generator.bias"], one.generator.bias.detach(), atol=1e-6)
    assert [row["step"] for row in read_curve(tmp_path / "two")] == [
        row["step"] for row in read_curve(tmp_path / "one")
    ]


def test_a_loss_that_is_not_finite_in_one_process_ends_all_of_them(tmp_path):
    ended = train_twice(tmp_path, "LostMean")
    assert ended.returncode
    for found in ("inf at step 0", "not finite in another process at step 0"):
        assert f"the loss of fit is {found}" in ended.stderr, ended.stderr


def test_accumulated_gradients_equal_those_of_one_batch(tmp_path):
    states = []
    for name, batch, accumulate in (("one", 4, 1), ("two", 2, 2)):
        torch.manual_seed(0)
        generator = Mean()
        train(generator, Volumes(8), tmp_path / name, plan(batch=batch, accumulate=accumulate), OFTEN)
        states.append(generator.generator.bias.detach().clone())
    assert torch.allclose(*states, atol=1e-6)


def test_phases_move_only_their_modules():
    generator = toy()
    run = training.Run(generator, plan(), training.Fabric(accelerator="cpu", devices=1))
    critic = generator.critic.weight.detach().clone()
    run._phase(0, generator.phases(0.0)[0], torch.zeros(1, 2, 1, *GRID.shape))
    assert torch.equal(generator.critic.weight, critic)
    assert generator.critic.weight.grad is None


def test_every_volume_is_seen_once_an_epoch():
    generator, seen = toy(), []

    class Watched(Volumes):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    fabric = training.Fabric(accelerator="cpu", devices=1)
    batches = training._Batches(Watched(), plan(), 2, fabric)
    for step in range(3):
        assert batches[step].shape == (2, 1, 2, 1, *GRID.shape)
    del generator
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_volumes_may_be_tensors(tmp_path):
    class Kept(Volumes):
        def __getitem__(self, index):
            return torch.from_numpy(self.data[index])

    train(toy(), Volumes(), tmp_path / "arrays", plan(), OFTEN)
    train(toy(), Kept(), tmp_path / "tensors", plan(), OFTEN)
    assert losses(tmp_path / "arrays") == losses(tmp_path / "tensors")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_an_export_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / f"{EXPORT}.partial").touch(0o600)  # left by a process that was killed
    before = os.umask(0o027)
    try:
        toy().export(tmp_path / EXPORT, toy().state_dict(), {})
    finally:
        os.umask(before)
    assert (tmp_path / EXPORT).stat().st_mode & 0o777 == 0o640


def test_previews_are_written_and_change_nothing(tmp_path):
    for name, every in (("without", 0), ("with", 8)):
        train(toy(), Volumes(), tmp_path / name, plan(), Machine(log_every=4, preview_every=every))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert [p.name for p in sorted((tmp_path / "with" / "previews").iterdir())] == [f"{k:07d}.png" for k in (8, 16, 24)]


def test_a_finished_run_can_be_made_longer(tmp_path):
    train(toy(), Volumes(), tmp_path / "twice", plan(steps=12), OFTEN)
    train(toy(), Volumes(), tmp_path / "twice", plan(), OFTEN, resume=True)
    train(toy(), Volumes(), tmp_path / "once", plan(), OFTEN)
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")


@pytest.mark.parametrize(
    ("changes", "volumes", "message"),
    [
        ({"batch": 1}, Volumes(), "too small"),
        ({"steps": 0}, Volumes(), "1 step"),
        ({}, Volumes(1), "1 training volumes"),
        ({}, Volumes(4, (4, 4, 4)), "shape"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason(changes, volumes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(toy(), volumes, tmp_path / "run", plan(**changes))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path):
    train(toy(), Volumes(), tmp_path, plan(), OFTEN)
    with pytest.raises(InputError, match="holds a training run"):
        train(toy(), Volumes(), tmp_path, plan())
    with pytest.raises(InputError, match="seed 3, not 4"):
        train(toy(), Volumes(), tmp_path, plan(seed=4), resume=True)
    (tmp_path / CHECKPOINT).write_bytes((tmp_path / CHECKPOINT).read_bytes()[:500])
    with pytest.raises(InputError, match="not a readable"):
        train(toy(), Volumes(), tmp_path, plan(), resume=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    train(toy(), Volumes(), tmp_path, plan(), OFTEN, stop=stop_after(5))
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(JobFailed, match="No space left"):
            train(toy(), Volumes(), tmp_path, plan(), OFTEN, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert train(toy(), Volumes(), tmp_path, plan(), OFTEN, resume=True).step == 24


def test_a_loss_that_is_not_finite_ends_the_run_with_its_name(tmp_path):
    volumes = Volumes()
    volumes.data[:] = np.inf
    with pytest.raises(InputError, match="loss of fit is"):
        train(toy(), volumes, tmp_path, plan())


def test_middle_planes_show_the_head_upright():
    volume = np.full((4, 6, 8), -1.0, np.float32)
    volume[:, :, -1] = 1.0  # the top of the head
    planes = training.middle_planes(volume)
    assert planes.shape == (8, 6 + 4 + 4)
    assert (planes[0, :10] == 255).all()  # at the top of the sagittal and the coronal plane
    assert (planes[-1, :10] == 0).all()


def test_the_curve_is_a_table(tmp_path):
    train(toy(), Volumes(), tmp_path, plan(), OFTEN)
    assert (tmp_path / CURVE).read_text(encoding="utf-8").splitlines()[0] == "step,seconds,fit,judge"
    assert [row["step"] for row in read_curve(tmp_path)] == ["4", "8", "12", "16", "20", "24"]
