"""Maps of all real and synthetic cases of a run, one for each encoder and method: map.csv."""

from __future__ import annotations

from itertools import product
from typing import Any, get_args

import pandas as pd

from core.metrics.embedding import Method
from core.workflows import cohort_tasks
from core.workflows.results import MAP_COLUMNS
from core.workflows.run import Run
from core.workflows.scoring import Scoring

METHODS: tuple[str, ...] = get_args(Method)


def draw_maps(scoring: Scoring) -> None:
    """Place the cases of all cohorts on one plane for each encoder and method; write map.csv as far as it is known."""
    run = scoring.run
    rows: list[dict[str, Any]] = []
    steps = [(encoder, method) for encoder, method in product(scoring.encoders, METHODS)]
    for index, (encoder, method) in enumerate(steps):
        with run.context.stage(index / len(steps), (index + 1) / len(steps)):
            rows += _map(run, scoring, encoder, method)
        run.write("map.csv", pd.DataFrame(rows, columns=list(MAP_COLUMNS)))
    if not steps:
        run.write("map.csv", pd.DataFrame(columns=list(MAP_COLUMNS)))


def _map(run: Run, scoring: Scoring, encoder: str, method: str) -> list[dict[str, Any]]:
    real, names = run.real.cohort.name, [prepared.cohort.name for prepared in run.synthetic]
    names = [real, *(name for name in names if (encoder, name) in scoring.encoded)]
    if (encoder, real) not in scoring.encoded or len(names) == 1:
        run.gap("all", f"map {encoder} {method}", "no features of the real cohort, or of any synthetic one")
        return []
    keys = tuple(scoring.encoded[encoder, name].key for name in names)
    arguments = [(run.settings, method, keys, run.study.settings.seed)]
    outcome = run.context.map(f"{method} map of {encoder}", cohort_tasks.joint_map_of, arguments)[0]
    if outcome.error:
        run.gap("all", f"map {encoder} {method}", outcome.error)
        return []
    shares = dict(zip(("share_x", "share_y"), outcome.value["shares"] or (None, None), strict=True))
    return [
        {"encoder": encoder, "method": method, "cohort": name, "case": case, "x": x, "y": y, **shares}
        for name, points in zip(names, outcome.value["cohorts"], strict=True)
        for case, (x, y) in zip(scoring.encoded[encoder, name].cases, points, strict=True)
    ]
