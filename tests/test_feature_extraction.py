"""Features of many volumes: one artefact each, the next volume loading while the network runs."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from core import encoders, workflows
from core.pools import Context, Outcome
from core.store import Store
from core.workflows import tasks
from core.workflows.cohorts import extract_features, prepare_folder, source_groups
from core.workflows.tasks import Source


@pytest.fixture
def sources(context: Context, tmp_path: Path, write_brains) -> list[Source]:
    write_brains(tmp_path / "brains", 5)
    return list(prepare_folder(context, "brains", str(tmp_path / "brains"), "synthetic").sources)


@pytest.fixture
def network(monkeypatch) -> list[float]:
    """Replace the encoder by the mean of the volume; lists what it saw."""
    seen: list[float] = []

    def encode(volumes: torch.Tensor) -> torch.Tensor:
        seen.append(float(volumes.mean()))
        return volumes.mean(dim=(2, 3, 4))

    monkeypatch.setattr(tasks, "_encoder", lambda *_: encode)
    return seen


def note_loads(monkeypatch, before: Callable[[Source], None] = lambda source: None) -> list[str]:
    """List the cases loaded; ``before`` runs first."""
    loaded, load = [], Source.load

    def noted(source: Source):
        before(source)
        loaded.append(source.case_id)
        return load(source)

    monkeypatch.setattr(Source, "load", noted)
    return loaded


def values(context: Context, outcomes: list[Outcome]) -> list[float]:
    store = Store(context.settings.workspace)
    return [float(store.get("npz", outcome.value)["features"][0]) for outcome in outcomes]


def test_features_are_those_of_the_bare_network_volume_by_volume(context, sources):
    outcomes = extract_features(context, sources, "deepbet", "", "brains")
    encode = encoders.build("deepbet")
    for source, outcome in zip(sources, outcomes, strict=True):
        stored = Store(context.settings.workspace).get("npz", outcome.value)["features"]
        expected = encode(torch.from_numpy(source.load().data)[None, None])[0].numpy()
        np.testing.assert_allclose(stored, expected, rtol=1e-6, atol=1e-6 * float(np.abs(expected).max()))


def test_the_next_volume_loads_while_the_network_runs(context, settings, sources, monkeypatch):
    begun = {source.case_id: threading.Event() for source in sources}
    loaded = note_loads(monkeypatch, lambda source: begun[source.case_id].set())
    overlapped = []

    def encode(volumes: torch.Tensor) -> torch.Tensor:
        following = len(overlapped) + 1
        if following < len(sources):
            overlapped.append(begun[sources[following].case_id].wait(timeout=30))  # only another thread can set it
        return volumes.mean(dim=(2, 3, 4))

    monkeypatch.setattr(tasks, "_encoder", lambda *_: encode)
    outcomes = tasks.extract_features(settings, sources, "deepbet", "")
    assert not any(outcome.error for outcome in outcomes)
    assert overlapped == [True] * (len(sources) - 1)
    assert loaded == [source.case_id for source in sources]


def test_at_most_two_volumes_are_held(settings, sources, network, monkeypatch):
    ahead = []
    note_loads(monkeypatch, lambda source: ahead.append(sources.index(source) - len(network)))
    tasks.extract_features(settings, sources, "deepbet", "")
    assert max(ahead) <= 1


def test_one_failed_case_is_a_row_and_the_others_go_on(context, sources, network):
    Path(sources[2].path).unlink()
    outcomes = extract_features(context, sources, "deepbet", "", "brains")
    assert [bool(outcome.error) for outcome in outcomes] == [False, False, True, False, False]
    assert sources[2].path in outcomes[2].error
    assert len(set(values(context, [o for o in outcomes if not o.error]))) == 4


def test_resuming_loads_and_computes_only_what_is_missing(context, sources, network, monkeypatch):
    extract_features(context, sources[:2] + sources[3:4], "deepbet", "", "brains")
    loaded = note_loads(monkeypatch)
    network.clear()
    outcomes = extract_features(context, sources, "deepbet", "", "brains")
    assert loaded == [sources[2].case_id, sources[4].case_id]
    assert len(network) == 2
    extract_features(context, sources, "deepbet", "", "brains")
    assert len(network) == 2
    assert len(set(values(context, outcomes))) == len(sources)


def test_a_damaged_artefact_is_computed_again_without_moving_the_others(context, sources, network):
    store = Store(context.settings.workspace)
    first = extract_features(context, sources, "deepbet", "", "brains")
    expected = values(context, first)
    store.path("npz", first[1].value).write_bytes(b"damaged")
    store.path("npz", first[3].value).unlink()
    assert values(context, extract_features(context, sources, "deepbet", "", "brains")) == expected


def test_a_volume_that_takes_its_worker_down_takes_no_other_along(context, sources, network, monkeypatch):
    extract = tasks.extract_features
    sizes = []

    def deadly(settings, group, encoder, weights):
        sizes.append(len(group))
        if sources[1] in group:
            raise SystemError("the worker died")
        return extract(settings, group, encoder, weights)

    monkeypatch.setattr(tasks, "extract_features", deadly)
    outcomes = extract_features(context, sources, "deepbet", "", "brains")
    assert [bool(outcome.error) for outcome in outcomes] == [False, True, False, False, False]
    assert sizes == [5, 1, 1, 1, 1, 1]


def test_progress_counts_volumes(settings, sources, network):
    from core.pools import InProcessPool

    lines = []
    context = Context(settings, InProcessPool(), report=lambda fraction, message: lines.append((fraction, message)))
    extract_features(context, sources, "deepbet", "", "brains")
    assert lines[0] == (0.0, "deepbet features of brains: 0 of 5")
    assert lines[-1] == (1.0, "deepbet features of brains: 5 of 5")


@pytest.mark.parametrize(("n", "workers"), [(0, 2), (1, 2), (5, 0), (24, 2), (400, 2), (400, 16), (17, 3)])
def test_groups_keep_the_order_and_serve_the_workers_alike(n, workers):
    groups = source_groups(list(range(n)), workers)  # type: ignore[arg-type]
    assert [item for group in groups for item in group] == list(range(n))
    lengths = [len(group) for group in groups]
    if n:
        assert min(lengths) >= 1 and max(lengths) <= 8 and max(lengths) - min(lengths) <= 1
        assert len(groups) % max(1, workers) == 0 or len(groups) == n


def test_the_command_writes_the_cases_that_worked(context, tmp_path, write_brains):
    paths = write_brains(tmp_path / "in", 3)
    shutil.copyfile(paths[0], tmp_path / "in" / "z-copy.nii.gz")
    summary = workflows.features_folder(context, str(tmp_path / "in"), "deepbet", str(tmp_path / "f.npz"))
    assert (summary["cases"], summary["failed"]) == (4, 1)
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape[0] == 3 and file["cases"].tolist() == [p.name[:-7] for p in paths]
