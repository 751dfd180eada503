"""Copy check of a run: copies.csv and copy_check.csv."""

from __future__ import annotations

from typing import Any

import pandas as pd

from core.pools import Outcome
from core.workflows import cohort_tasks
from core.workflows.cohorts import Prepared
from core.workflows.results import COPY_CHECK_COLUMNS, COPY_COLUMNS, IMAGE
from core.workflows.run import NO_TRAINING, Run
from core.workflows.scoring import Scoring

WHAT = "copy check"


class CopyCheck:
    """Synthetic cases against the training cohort and the held-out people, in feature and image space.

    The real cohort of a study is the test cohort: nobody in it was seen by the generators.

    Parameters
    ----------
    scoring : Scoring
        Its features, and its inner products of real and synthetic volumes, are known.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.scoring, self.run, self.context = scoring, scoring.run, scoring.context
        self.cases: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []

    def check(self) -> None:
        """Check every synthetic cohort in every space; without a training cohort there are gaps and no numbers."""
        run, training = self.run, self.run.training
        if training is None:
            if run.study.training is None:
                run.gap("all", WHAT, NO_TRAINING)
            else:
                run.gap("all", WHAT, "no volume of the training cohort can be used")
        else:
            _warn_of_people_on_both_sides(run, training)
            encoders = list(self.scoring.encoders)
            for index, encoder in enumerate(encoders):
                with self.context.stage(0.9 * index / len(encoders), 0.9 * (index + 1) / len(encoders)):
                    self.check_features(training, encoder)
                self.write()
            with self.context.stage(0.9, 1.0):
                self.check_images(training)
        self.write()

    def check_features(self, training: Prepared, encoder: str) -> None:
        """Compare in the feature space of one encoder."""
        scoring, real = self.scoring, self.run.real.cohort.name
        scoring.encode(training, encoder)
        names = [p.cohort.name for p in self.run.synthetic]
        ready = [name for name in names if (encoder, name) in scoring.encoded]
        for name in sorted(set(names) - set(ready)):
            self.run.gap(name, f"{WHAT} {encoder}", "no features")
        for name in [name for name in (real, training.cohort.name) if (encoder, name) not in scoring.encoded]:
            self.run.gap("all", f"{WHAT} {encoder}", f"no features of {name}")
            return
        references = [scoring.encoded[encoder, name].key for name in (training.cohort.name, real)]
        seed = self.run.study.settings.seed
        arguments = [(self.run.settings, scoring.encoded[encoder, name].key, *references, seed) for name in ready]
        outcomes = self.context.map(f"{encoder} copy check", cohort_tasks.copy_check_features, arguments)
        seen = scoring.encoded[encoder, training.cohort.name].cases
        for name, outcome in zip(ready, outcomes, strict=True):
            self._add(name, encoder, outcome, scoring.encoded[encoder, name].cases, seen)

    def check_images(self, training: Prepared) -> None:
        """Compare the volumes themselves, by their inner products."""
        run, known = self.run, self.scoring.products
        ready = [p for p in run.synthetic if p.cohort.name in known and not known[p.cohort.name].error]
        for name, outcome in known.items():
            if outcome.error:
                run.gap(name, f"{WHAT} {IMAGE}", outcome.error)
        title = "inner products of synthetic and training volumes"
        arguments = [(run.settings, p.sources, training.sources) for p in ready]
        products = self.context.map(title, cohort_tasks.products_of_rows, arguments)
        seen, seed = tuple(source.case_id for source in training.sources), run.study.settings.seed
        for prepared, product in zip(ready, products, strict=True):
            name = prepared.cohort.name
            outcome = product
            if not product.error:
                keys = (known[name].value, product.value)
                task = [(run.settings, *keys, len(run.real.sources), seed)]
                outcome = self.context.map(f"image copy check of {name}", cohort_tasks.copy_check_images, task)[0]
            self._add(name, IMAGE, outcome, tuple(source.case_id for source in prepared.sources), seen)

    def write(self) -> None:
        """Write both tables as far as they are known."""
        self.run.write("copies.csv", pd.DataFrame(self.cases, columns=list(COPY_COLUMNS)))
        self.run.write("copy_check.csv", pd.DataFrame(self.checks, columns=list(COPY_CHECK_COLUMNS)))

    def _add(
        self, cohort: str, space: str, outcome: Outcome, cases: tuple[str, ...], training: tuple[str, ...]
    ) -> None:
        if outcome.error:
            self.run.gap(cohort, f"{WHAT} {space}", outcome.error)
            return
        identity = {"cohort": cohort, "space": space}
        result = dict(outcome.value)
        for pair in result.pop("pairs"):
            names = {"case": cases[pair.pop("synthetic")], "nearest_training": training[pair.pop("training")]}
            self.cases.append(identity | names | pair)
        self.checks.append(identity | result)


def _warn_of_people_on_both_sides(run: Run, training: Prepared) -> None:
    """Say which people and files are in the training and in the real cohort: they are not held out."""
    sides = []
    for prepared in (training, run.real):
        used = {source.case_id for source in prepared.sources}
        sides.append({c.participant for c in prepared.cohort.cases if c.case_id in used and c.participant})
    if both := sorted(sides[0] & sides[1]):
        what = f"{len(both)} people are in the training and in the real cohort, for example {', '.join(both[:5])}"
        run.warn(training.cohort.name, WHAT, f"{what}: nobody held out may have been seen in training")
    known = {source.sha: source.case_id for source in run.real.sources}
    if same := sorted(known[source.sha] for source in training.sources if source.sha in known):
        what = f"{len(same)} real volumes are in the training cohort too, for example {', '.join(same[:5])}"
        run.warn(training.cohort.name, WHAT, f"{what}: nobody held out may have been seen in training")
