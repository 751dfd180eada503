"""Scores of the synthetic cohorts against the real one: metrics.csv and details.json."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from core import __version__, encoders, metrics
from core.errors import InputError, SynthScopeError
from core.pools import Outcome
from core.store import content_key
from core.workflows import cohort_tasks, tasks
from core.workflows.cohorts import INTENSITY_RULES, Prepared, encoder_weights, extract_features, gather_features
from core.workflows.results import DETAILS, METRIC_COLUMNS
from core.workflows.run import Run

NO_DETAILS: dict[str, Any] = {"p_value": None, "curve": [], "settings": {}, "warnings": []}


@dataclass(frozen=True)
class Encoded:
    """Features of one cohort under one encoder: their key in the store, the cases of the rows."""

    key: str
    cases: tuple[str, ...]


def check_metrics(names: Collection[str], where: str) -> None:
    """Refuse names of metrics that do not exist; raises InputError, which says where they stand and what there is."""
    known = {metric.name for metric in metrics.METRICS.values()}
    if unknown := set(names) - known:
        what = f"unknown metric {sorted(unknown)[0]!r}."
        raise InputError(what, where, f"Choose of: {', '.join(sorted(known))}.")


class Scoring:
    """The scores of one run.

    Parameters
    ----------
    run : Run
        Its cohorts are prepared before the first score.
    only : collection of str
        Names of the metrics wanted; all without it.
    """

    def __init__(self, run: Run, only: Collection[str] = ()) -> None:
        self.only = frozenset(only)
        self.run, self.context, self.study, self.store = run, run.context, run.study, run.store
        self.rows: list[dict[str, Any]] = []
        self.details: list[dict[str, Any]] = []
        self.encoders: dict[str, tuple[str, str]] = {}  # weight file and fingerprint of those that can be used
        self.encoded: dict[tuple[str, str], Encoded] = {}  # by encoder and cohort
        self.products: dict[str, Outcome] = {}  # key of the inner products of real and synthetic volumes, by cohort

    def wanted(self, inputs: str) -> list[str]:
        """Keys of the metrics that are wanted and compare these inputs."""
        chosen = [key for key, metric in metrics.METRICS.items() if metric.inputs == inputs]
        return [key for key in chosen if not self.only or metrics.METRICS[key].name in self.only]

    def score_features(self) -> None:
        """Extract features and score them, encoder by encoder."""
        names = self.study.settings.encoders
        for index, encoder in enumerate(names):
            with self.context.stage(index / len(names), (index + 1) / len(names)):
                try:
                    weights = encoder_weights(self.store, encoder)
                    fingerprint = encoders.fingerprint(encoder, weights or None)
                except SynthScopeError as error:
                    self.run.gap("all", encoder, str(error))
                    continue
                self.encoders[encoder] = (weights, fingerprint)
                self._score_encoder(encoder)

    def _score_encoder(self, encoder: str) -> None:
        cohorts = [self.run.real, *self.run.synthetic]
        for index, prepared in enumerate(cohorts):
            with self.context.stage(index / len(cohorts), (index + 1) / len(cohorts)):
                self.encode(prepared, encoder)
                if index:
                    self.score_pair(prepared, encoder)

    def encode(self, prepared: Prepared, encoder: str) -> None:
        """Extract the features of a cohort unless they are known; what fails is a gap."""
        if (encoder, prepared.cohort.name) in self.encoded:
            return
        weights, _ = self.encoders[encoder]
        outcomes = extract_features(self.context, prepared.sources, encoder, weights, prepared.cohort.name)
        for source, outcome in zip(prepared.sources, outcomes, strict=True):
            if outcome.error:
                self.run.gap(prepared.cohort.name, f"{encoder} features of {source.case_id}", outcome.error)
        good = [(s.case_id, o.value) for s, o in zip(prepared.sources, outcomes, strict=True) if not o.error]
        if good:
            key = gather_features(self.store, [value for _, value in good])
            self.encoded[encoder, prepared.cohort.name] = Encoded(key, tuple(case for case, _ in good))

    def score_pair(self, prepared: Prepared, encoder: str) -> None:
        """Score the features of one synthetic cohort against the real ones."""
        _, fingerprint = self.encoders[encoder]
        entries, settings = self.wanted("features"), self.study.settings
        names = (self.run.real.cohort.name, prepared.cohort.name)
        if missing := [name for name in names if (encoder, name) not in self.encoded]:
            for key in entries:
                self._add(prepared, key, encoder, fingerprint, None, f"no features of {missing[0]}")
            return
        keys = [self.encoded[encoder, name].key for name in names]
        outcomes = self.context.map(
            f"{encoder} scores of {prepared.cohort.name}",
            tasks.score_features,
            [(self.run.settings, key, *keys, settings.seed, settings.n_boot) for key in entries],
        )
        for key, outcome in zip(entries, outcomes, strict=True):
            self._add(prepared, key, encoder, fingerprint, outcome.value, outcome.error)
        self.write()

    def score_volumes(self) -> None:
        """Score what is measured on the volumes themselves."""
        steps = [(prepared, key) for prepared in self.run.synthetic for key in self.wanted("volumes")]
        for index, (prepared, key) in enumerate(steps):
            with self.context.stage(index / len(steps), (index + 1) / len(steps)):
                try:
                    score = self._score_groups(prepared, key)
                except InputError as error:
                    self._add(prepared, key, "", "", None, str(error))
                else:
                    self._add(prepared, key, "", "", score, "")
            self.write()

    def score_products(self) -> None:
        """Score what needs the inner products of the volumes only."""
        entries = self.wanted("gram")
        if not entries and self.run.training is None:  # the copy check needs the products too
            return
        cohorts, settings = self.run.synthetic, self.study.settings
        real = self.run.real.sources
        title = "inner products of real and synthetic volumes"
        outcomes = self.context.map(
            title, cohort_tasks.products_of_cohorts, [(self.run.settings, real, p.sources) for p in cohorts]
        )
        for prepared, products in zip(cohorts, outcomes, strict=True):
            self.products[prepared.cohort.name] = products
            if products.error:
                for key in entries:
                    self._add(prepared, key, "", "", None, products.error)
                continue
            scores = self.context.map(
                f"image scores of {prepared.cohort.name}",
                cohort_tasks.score_products,
                [
                    (self.run.settings, key, products.value, len(real), settings.seed, settings.n_boot)
                    for key in entries
                ],
            )
            for key, score in zip(entries, scores, strict=True):
                self._add(prepared, key, "", "", score.value, score.error)
        self.write()

    def _score_groups(self, prepared: Prepared, key: str) -> dict[str, Any]:
        settings, metric = self.study.settings, metrics.METRICS[key]
        assert isinstance(metric, metrics.VolumeMetric)
        counts = {"n_real": len(self.run.real.sources), "n_synthetic": len(prepared.sources)}
        if min(counts.values()) < metric.least_n:
            what = f"needs at least {metric.least_n} volumes in each cohort, found {min(counts.values())}."
            raise InputError(what, prepared.cohort.name, "Add volumes.")
        groups = metric.plan(**counts, seed=settings.seed)
        sides = {"real": self.run.real.sources, "synthetic": prepared.sources}
        distinct = list(dict.fromkeys(groups))  # a group drawn twice counts twice and is measured once
        arguments = [
            (self.run.settings, tuple(sides[role][i] for role, i in group), key, tuple(role for role, _ in group))
            for group in distinct
        ]
        title = f"{metric.label} of {prepared.cohort.name}"
        outcomes = dict(zip(distinct, self.context.map(title, tasks.measure, arguments), strict=True))
        values = [np.nan if outcomes[g].value is None else outcomes[g].value for g in groups]
        failed = next((outcome.error for outcome in outcomes.values() if outcome.error), "")
        if failed and not np.isfinite(values).any():
            raise InputError(failed, prepared.cohort.name)
        score = metric.summarise(groups, values, **counts, seed=settings.seed, n_boot=settings.n_boot)
        return score.to_dict()

    def _add(
        self, prepared: Prepared, key: str, encoder: str, weights: str, score: dict[str, Any] | None, error: str
    ) -> None:
        metric = metrics.METRICS[key]
        counts = {"n_real": len(self.run.real.sources), "n_synthetic": len(prepared.sources)}
        numbers = score or {"value": None, "ci_low": None, "ci_high": None, "floor": None, **counts}
        if error:
            self.run.gap(prepared.cohort.name, f"{key} {encoder}".strip(), error)
        items = {
            "real cohort": self.run.real.token,
            "grid": self.study.grid.name,
            "intensity rules outside [-1, 1]": INTENSITY_RULES,
            "encoder": encoder,
            "encoder weights": weights,
            "estimator": f"{key} v{metric.version}",
            "real N": numbers["n_real"],
            "synthetic N": numbers["n_synthetic"],
            "seed": self.study.settings.seed,
            "bootstraps": self.study.settings.n_boot,
            "code": __version__,
        }
        fingerprint = content_key("fingerprint", 1, [], items)[:12]
        self.run.fingerprints[fingerprint] = items
        identity = {"cohort": prepared.cohort.name, "metric": metric.name, "encoder": encoder}
        identity |= {"variant": metric.variant, "fingerprint": fingerprint}
        columns = ("value", "ci_low", "ci_high", "floor", "n_real", "n_synthetic")
        self.rows.append(identity | {"direction": metric.direction} | {c: numbers[c] for c in columns})
        self.details.append(identity | {c: numbers.get(c, empty) for c, empty in NO_DETAILS.items()})
        for warning in numbers.get("warnings", ()):
            note = self.run.gap if numbers["value"] is None else self.run.warn
            note(prepared.cohort.name, f"{key} {encoder}".strip(), warning)

    def write(self) -> None:
        """Write metrics.csv and details.json as far as they are known."""
        self.run.write("metrics.csv", self.table())
        self.run.write_json(DETAILS, self.in_order(self.details))
        self.run.write_provenance(complete=False)

    def table(self) -> pd.DataFrame:
        """Return metrics.csv as far as it is known, in the order of the study."""
        return pd.DataFrame(self.in_order(self.rows), columns=list(METRIC_COLUMNS))

    def in_order(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Sort rows by cohort, in the order of the study."""
        order = {p.cohort.name: i for i, p in enumerate(self.run.cohorts)}
        return sorted(rows, key=lambda row: order[row["cohort"]])
