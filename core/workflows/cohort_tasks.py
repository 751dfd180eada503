"""Tasks on whole cohorts: inner products of volumes, what is scored from them, and the copy check.

They run on the workers as `tasks` do; arrays travel through the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from core import metrics
from core.metrics.copies import CopyResult, copy_check, copy_check_distances
from core.metrics.embedding import Method, joint_map
from core.metrics.gram import gram_matrix, squared_distances
from core.settings import Settings
from core.store import Store, content_key
from core.workflows.tasks import Source

GRAM_VERSION = 1
COPY_VERSION = 2
MAP_VERSION = 2


def products_of_cohorts(settings: Settings, real: Sequence[Source], synthetic: Sequence[Source]) -> str:
    """Multiply the volumes of two cohorts with each other, in one pass over their files.

    Returns
    -------
    str
        Key of ``products`` (n + m, n + m), real rows first.
    """
    return _products(settings, [*real, *synthetic], None)


def products_of_rows(settings: Settings, rows: Sequence[Source], others: Sequence[Source]) -> str:
    """Do as `products_of_cohorts`, without the products among ``others``, which may be many."""
    return _products(settings, [*rows, *others], len(rows))


def _products(settings: Settings, sources: Sequence[Source], rows: int | None) -> str:
    store = Store(settings.workspace)
    key = content_key("gram", GRAM_VERSION, [source.token for source in sources], {"rows": rows})

    def compute() -> dict[str, np.ndarray]:
        volumes = (source.load().data for source in sources)
        return {"products": gram_matrix(volumes, len(sources), scratch=store.folder("scratch"), rows=rows)}

    store.get_or_compute("npz", key, compute, {"operation": "gram", "volumes": len(sources)})
    return key


def score_products(
    settings: Settings, metric: str, products: str, n_real: int, seed: int, n_boot: int
) -> dict[str, Any]:
    """Score two cohorts of volumes by their stored inner products; return the metric's Score as a dict."""
    store = Store(settings.workspace)
    entry = metrics.METRICS[metric]
    assert isinstance(entry, metrics.GramMetric)
    choices = {"metric": metric, "n_real": n_real, "seed": seed, "n_boot": n_boot}
    key = content_key("score", entry.version, [products], choices)

    def compute() -> dict[str, Any]:
        array = store.get("npz", products)["products"]
        return entry.evaluate(array, n_real, seed=seed, n_boot=n_boot).to_dict()

    score: dict[str, Any] = store.get_or_compute("json", key, compute)
    return score


def copy_check_features(settings: Settings, synthetic: str, training: str, held_out: str, seed: int) -> dict[str, Any]:
    """Check stored features for copies.

    Returns
    -------
    dict
        ``share``, ``p_value``, ``p_binomial``, ``n_synthetic``, ``n_reference``, and ``pairs``: every synthetic row,
        worst first.
    """
    store = Store(settings.workspace)

    def check() -> CopyResult:
        rows, seen, unseen = (store.get("npz", key)["features"] for key in (synthetic, training, held_out))
        return copy_check(rows, seen, unseen, seed=seed, worst=len(rows))

    key = content_key("copy check", COPY_VERSION, [synthetic, training, held_out], {"seed": seed})
    result: dict[str, Any] = store.get_or_compute("json", key, lambda: _as_dict(check()))
    return result


def copy_check_images(
    settings: Settings, real_and_synthetic: str, synthetic_and_training: str, n_real: int, seed: int
) -> dict[str, Any]:
    """Check volumes for copies by their stored inner products; see `copy_check_features`."""
    store = Store(settings.workspace)

    def check() -> CopyResult:
        keys = (real_and_synthetic, synthetic_and_training)
        squared = [squared_distances(store.get("npz", key)["products"]) for key in keys]
        n = len(squared[0]) - n_real
        distances = (np.sqrt(squared[1][:n, n:]), np.sqrt(squared[0][n_real:, :n_real]))
        return copy_check_distances(*distances, seed=seed, worst=n)

    inputs = [real_and_synthetic, synthetic_and_training]
    key = content_key("copy check", COPY_VERSION, inputs, {"n_real": n_real, "seed": seed})
    result: dict[str, Any] = store.get_or_compute("json", key, lambda: _as_dict(check()))
    return result


def joint_map_of(settings: Settings, method: Method, cohorts: Sequence[str], seed: int) -> dict[str, Any]:
    """Place stored features of all cohorts on one map, real ones first.

    Returns
    -------
    dict
        ``cohorts``: a list of [x, y] for each; ``shares`` of the variance along both axes, or None.
    """
    store = Store(settings.workspace)

    def place() -> dict[str, Any]:
        real, *synthetic = (store.get("npz", key)["features"] for key in cohorts)
        result = joint_map(real, synthetic, method=method, seed=seed)
        return {"cohorts": [points.tolist() for points in result.cohorts], "shares": result.shares}

    key = content_key("map", MAP_VERSION, list(cohorts), {"method": method, "seed": seed})
    positions: dict[str, Any] = store.get_or_compute("json", key, place)
    return positions


def _as_dict(result: CopyResult) -> dict[str, Any]:
    """Return plain JSON types; a ratio to nothing is None."""
    columns = ("share", "p_value", "p_binomial", "n_synthetic", "n_reference")
    pairs = [asdict(pair) for pair in result.worst]
    for pair in pairs:
        pair["ratio"] = pair["ratio"] if np.isfinite(pair["ratio"]) else None
    return {**{c: getattr(result, c) for c in columns}, "pairs": pairs}
