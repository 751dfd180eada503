"""One case, or one group of cases, at a time: load, compute, store. These functions run on the workers.

Arguments and results are small; volumes and features travel through the store, never through the scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core import encoders, image_checks, metrics, preprocess, segmentation, simulate
from core.errors import InputError
from core.pools import Outcome, attempt
from core.settings import Settings, refuse_scan_outside
from core.store import Store, content_key, write_json, write_volume
from core.volume import HALF, Volume, grid_named, load_on_grid

CHECK_VERSION = 1


@dataclass(frozen=True)
class Source:
    """A volume that was checked: where it is, what it holds, and how it is brought to the grid.

    Parameters
    ----------
    case_id : str
        Case it belongs to.
    path : str
        File in atlas space.
    sha : str
        SHA-256 of the file.
    grid : str
        Grid wanted.
    rule : str
        Intensity rule for volumes outside [-1, 1].
    orientation : str
        Axis codes that override the header, or "".
    """

    case_id: str
    path: str
    sha: str
    grid: str
    rule: str
    orientation: str = ""

    @cached_property
    def token(self) -> str:
        """Hash of content and treatment; the name does not count."""
        treatment = {"grid": self.grid, "rule": self.rule, "orientation": self.orientation}
        return content_key("source", 1, [self.sha], treatment)

    def load(self) -> Volume:
        """Return the volume on its grid, in [-1, 1]."""
        return _load_half(self) if self.grid == HALF.name else _load(self)


def _load(source: Source) -> Volume:
    grid = grid_named(source.grid)
    return load_on_grid(source.path, grid, rule=source.rule, orientation=source.orientation, checked=True)


# Groups of volumes share members: 64 volumes of 2 MB save most of the reading. On the full grid they would take 1 GB.
_load_half = lru_cache(maxsize=64)(_load)


def check(settings: Settings, path: str, grid: str, rule: str, orientation: str) -> dict[str, Any]:
    """Read a volume once and tell whether it can be used.

    Returns
    -------
    dict
        ``sha`` and ``notes``.

    Raises
    ------
    InputError
        See `core.volume.load_on_grid`.
    """
    store = Store(settings.workspace)
    sha = _file_hash(store, path)
    key = content_key("check", CHECK_VERSION, [sha], {"grid": grid, "rule": rule, "orientation": orientation})

    def notes() -> dict[str, Any]:
        volume = load_on_grid(path, grid_named(grid), rule=rule, orientation=orientation)
        return {"notes": list(volume.notes)}

    return {"sha": sha, **store.get_or_compute("json", key, notes)}


def preprocess_scan(settings: Settings, path: str, grid: str, template: str) -> dict[str, Any]:
    """Bring a raw T1w scan to the atlas, once.

    Returns
    -------
    dict
        ``path`` and ``sha`` of the stored volume, ``provenance`` with every step and the affine.
    """
    store = Store(settings.workspace)
    template_file = None if template == "embedded" else Path(template)
    inputs = [_file_hash(store, path), _file_hash(store, template) if template_file else "embedded"]
    key = content_key("preprocess", preprocess.VERSION, inputs, {"grid": grid})

    def steps() -> dict[str, Any]:
        threads = settings.threads
        result = preprocess.preprocess(Path(path), grid_named(grid), template=template_file, threads=threads)
        store.put("volume", key, result.volume)
        return result.provenance()

    provenance = store.get_or_compute("json", key, steps)
    if not store.has("volume", key):  # set aside as damaged since
        store.path("json", key).unlink(missing_ok=True)
        provenance = store.get_or_compute("json", key, steps)
    volume_path = store.path("volume", key)
    return {"path": str(volume_path), "sha": store.file_hash(volume_path), "provenance": provenance}


def features_key(source: Source, fingerprint: str) -> str:
    """Key of one volume's features under one encoder and its weights."""
    return content_key("features", 1, [source.token], {"encoder": fingerprint})


def extract_features(settings: Settings, sources: Sequence[Source], encoder: str, weights: str) -> list[Outcome]:
    """Run volumes through an encoder one by one, the next one loading while the network works on the last.

    Every volume's features (d,) are an artefact of their own: volumes that have one are not loaded, and one
    that fails stops no other.

    Returns
    -------
    list of Outcome
        For each source the key of its features, or the reason there are none.
    """
    store = Store(settings.workspace)
    keys = [features_key(source, _fingerprint(encoder, weights)) for source in sources]
    missing = [source for source, key in zip(sources, keys, strict=True) if not store.has("npz", key)]

    def one(source: Source, key: str) -> str:
        def forward() -> dict[str, np.ndarray]:
            import torch

            use_threads(settings.threads)
            volume = torch.from_numpy(load(source).data)[None, None].to(settings.device)  # (1, 1, x, y, z)
            network = _encoder(encoder, weights, settings.device)
            return {"features": network(volume)[0].float().cpu().numpy()}

        provenance = {"operation": "features", "source": asdict(source), "encoder": encoder}
        store.get_or_compute("npz", key, forward, provenance)
        return key

    with _loading_ahead(missing) as load:
        return [attempt(one, source, key) for source, key in zip(sources, keys, strict=True)]


@contextmanager
def _loading_ahead(sources: Sequence[Source]) -> Iterator[Callable[[Source], Volume]]:
    """Offer a function that returns a volume and starts loading the next; two volumes are held at most."""
    position = {source: index for index, source in enumerate(sources)}
    loading: dict[int, Future[Volume]] = {}
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:

        def begin(index: int) -> None:
            if index < len(sources):
                loading[index] = thread.submit(sources[index].load)

        def load(source: Source) -> Volume:
            index = position.get(source)
            if index is None:  # its artefact was there, and damaged
                return source.load()
            if index not in loading:  # another process computed the volumes before it
                begin(index)
            volume = loading.pop(index)
            begin(index + 1)
            return volume.result()

        begin(0)
        yield load


def segmentation_key(source: Source, engine: str) -> str:
    """Key of one volume's segmentation by one engine."""
    return content_key("segmentation", 1, [source.token], {"engine": segmentation.fingerprint(engine)})


def segment(settings: Settings, source: Source, engine: str) -> dict[str, Any]:
    """Segment one volume; the label map is stored beside the table row.

    Returns
    -------
    dict
        ``volumes`` (mm³) and ``qc`` by column name.
    """
    store = Store(settings.workspace)
    key = segmentation_key(source, engine)

    def run() -> dict[str, Any]:
        use_threads(settings.threads)
        result = _segmenter(engine)(source.load())
        store.put("labels", key, result.labels)
        return {"volumes": dict(result.volumes), "qc": dict(result.qc)}

    row: dict[str, Any] = store.get_or_compute("json", key, run, {"engine": engine, "source": asdict(source)})
    return row


def check_image(settings: Settings, source: Source, engine: str) -> dict[str, float]:
    """Check one segmented volume's image."""
    store = Store(settings.workspace)
    labels = segmentation_key(source, engine)
    key = content_key("image check", image_checks.VERSION, [source.token, labels], {})

    def compute() -> dict[str, float]:
        found = store.get("labels", labels).data
        values = image_checks.check_image(source.load().data, found, grid_named(source.grid).spacing)
        return {name: value for name, value in values.items() if np.isfinite(value)}

    checks: dict[str, float] = store.get_or_compute("json", key, compute)
    return checks


def measure(settings: Settings, sources: Sequence[Source], metric: str, roles: Sequence[str]) -> float | None:
    """Measure one group of volumes; None where the metric is not defined for them."""
    store = Store(settings.workspace)
    entry = metrics.METRICS[metric]
    assert isinstance(entry, metrics.VolumeMetric)
    tokens = [source.token for source in sources]
    key = content_key("measure", entry.version, tokens, {"metric": metric, "roles": list(roles)})

    def compute() -> float | None:
        value = float(entry.measure(*(source.load().data for source in sources), cohorts=roles))  # type: ignore[arg-type]
        return value if np.isfinite(value) else None

    result: float | None = store.get_or_compute("json", key, compute)
    return result


def score_features(
    settings: Settings, metric: str, real: str, synthetic: str, seed: int, n_boot: int
) -> dict[str, Any]:
    """Score two cohorts' stored feature matrices; return the metric's Score as a dict."""
    store = Store(settings.workspace)
    entry = metrics.METRICS[metric]
    assert isinstance(entry, metrics.FeatureMetric)
    key = content_key("score", entry.version, [real, synthetic], {"metric": metric, "seed": seed, "n_boot": n_boot})

    def compute() -> dict[str, Any]:
        first, second = (store.get("npz", k)["features"] for k in (real, synthetic))
        return entry.evaluate(first, second, seed=seed, n_boot=n_boot).to_dict()

    score: dict[str, Any] = store.get_or_compute("json", key, compute)
    return score


def simulate_case(
    settings: Settings, out: str, grid: str, seed: int, index: int, defect: str, strength: float
) -> dict[str, Any]:
    """Make one simulated volume with its true labels in the folder ``out``, unless it is there already.

    Returns
    -------
    dict
        ``case_id``, true ``volumes`` (mm³) and ``participant`` facts.
    """
    del settings
    record = Path(out) / "truth" / f"{simulate.case_id(seed, index, defect)}.json"
    if not record.is_file():
        case = simulate.simulate_case(grid_named(grid), seed, index, defect=defect, strength=strength)
        labels = Volume(case.labels, case.volume.affine, case.volume.case_id)
        write_volume(labels, record.with_name(f"{case.volume.case_id}_dseg.nii.gz"))
        write_volume(case.volume, Path(out) / f"{case.volume.case_id}.nii.gz")
        facts = {"case_id": case.volume.case_id, "volumes": case.volumes, "participant": case.participant}
        write_json({**facts, "provenance": case.provenance()}, record)
    result: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return result


def _file_hash(store: Store, path: str) -> str:
    refuse_scan_outside(path)  # here too: a symlink may have been laid since the study was read
    try:
        return store.file_hash(path)
    except FileNotFoundError as error:
        raise InputError("there is no such file.", path, "It was moved or deleted: restore it.") from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}).", path, "Check its permissions.") from error


@lru_cache(maxsize=8)
def _fingerprint(encoder: str, weights: str) -> str:
    return encoders.fingerprint(encoder, weights or None)


def use_threads(threads: int) -> None:
    """Let torch compute with so many threads in this thread: the number counts for each, and changes last digits."""
    import torch

    torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def _encoder(encoder: str, weights: str, device: str) -> Callable[..., Any]:
    return encoders.build(encoder, weights or None, device=device)


@lru_cache(maxsize=2)
def _segmenter(engine: str) -> Callable[[Volume], Any]:
    return segmentation.build(engine)
