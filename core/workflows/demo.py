"""The demo study: simulated brains, the six generators trained on some of them, and control cohorts."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import simulate
from core.generators import GENERATORS
from core.pools import Context
from core.settings import Settings
from core.store import Store, content_key
from core.study import read_spec, write_spec
from core.workflows.evaluation import evaluate
from core.workflows.generation import demo_checkpoint, generate
from core.workflows.verbs import simulate_cohort

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"
MAKING = 0.4  # share of the progress bar


def demo(context: Context) -> dict[str, Any]:
    """Make the demo study (simulated real and training cohorts, controls, samples of six generators), evaluate it."""
    folder, n = demo_folder(context.settings), context.settings.demo_cases
    plan = json.loads((DEMO / "cohorts.json").read_text(encoding="utf-8"))
    for index, item in enumerate(plan):
        out = str(folder / item["folder"])
        with context.stage(MAKING * index / len(plan), MAKING * (index + 1) / len(plan)):
            if "model" in item:
                weights, steps = str(demo_checkpoint(item["model"])), item.get("steps", 0)
                generate(context, item["model"], weights, n, item["seed"], out, "half", steps)
            else:
                simulate_cohort(context, out, n, item["seed"], "half", item["defect"])
    with context.stage(MAKING, 1.0):
        return evaluate(context, str(folder / "study.toml"))


def demo_folder(settings: Settings) -> Path:
    """Return the folder of the demo study, with its study.toml in place; another demo gets another folder."""
    made_from = [DEMO / "study.toml", DEMO / "cohorts.json"]
    made_from += [path for name in GENERATORS if (path := demo_checkpoint(name))]
    name = _demo_name(
        settings.workspace, settings.demo_cases, tuple((path, path.stat().st_mtime_ns) for path in made_from)
    )
    folder = Store(settings.workspace).folder("demo", name)
    if not (folder / "study.toml").is_file():
        write_spec(read_spec(DEMO / "study.toml"), folder / "study.toml")
    return folder


@lru_cache(maxsize=16)
def _demo_name(workspace: Path, n: int, made_from: tuple[tuple[Path, int], ...]) -> str:
    """Name the demo after what it is made from, study and recipe first; pages ask many times a run."""
    recipe = [path.read_text(encoding="utf-8") for path, _ in made_from[:2]]
    weights = [Store(workspace).file_hash(path) for path, _ in made_from[2:]]
    return content_key("demo", 1, [*recipe, str(simulate.VERSION), *weights], {"n": n})[:8]
