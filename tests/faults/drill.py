"""The long fault drill: every fault at several random moments, and a report of what was seen.

python -m tests.faults.drill --moments 5 --report drill.md [--seed 0] [--fault kill_worker ...]
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.cluster import artefacts
from tests.faults.scene import FAULTS, Scene, undisturbed
from tests.hosts import NotHere

HEAD = (
    "| fault | moment (finished artefacts) | seconds | finished before, made again | outcome |",
    "|---|---|---|---|---|",
)


def main() -> int:
    """Run the drill; returns the number of faults after which something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=5, help="random moments for each fault")
    parser.add_argument("--report", type=Path, required=True, help="markdown file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--fault", choices=names, action="append", help="only these; repeat")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if not options.fault or fault.__name__ in options.fault]
    root = Path(tempfile.mkdtemp(prefix="drill-"))
    expected, count = undisturbed(root / "data", root / "whole")
    draw, lines, failed = random.Random(options.seed), [], 0
    for turn in range(options.moments):
        for fault in chosen:
            moment = draw.randint(1, count - 1)
            folder = root / f"{fault.__name__}-{turn}"
            line, ok = one(Scene(root / "data", folder, expected), fault, moment, folder / "elsewhere")
            failed += not ok
            lines.append(line)
            report(options.report, lines, failed, count)
            if ok:
                shutil.rmtree(folder)
    return failed


def one(scene: Scene, fault, moment: int, folder: Path) -> tuple[str, bool]:
    """Do one fault; return its row of the report."""
    start, outcome = time.monotonic(), "tables identical, every artefact whole"
    try:
        fault(scene, moment, folder)
        scene.check()
    except NotHere as reason:
        return f"| {fault.__name__} | – | – | – | not tried: {reason} |", True
    except Exception as error:
        outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        scene.close()
    found = artefacts(scene.workspace)
    again = sum(found.get(name) != facts for name, facts in scene.kept.items())
    seconds = time.monotonic() - start
    row = f"| {fault.__name__} | {moment} | {seconds:.0f} | {len(scene.kept)}, {again} | {outcome} |"
    return row, outcome.startswith("tables identical")


def report(path: Path, lines: list[str], failed: int, count: int) -> None:
    """Write the report as far as it is known."""
    load = os.getloadavg()[0]
    where = (
        f"{os.cpu_count()} cores, load {load:.1f} at the end, Python {platform.python_version()}, {platform.system()}"
    )
    text = f"{len(lines)} faults, {failed} after which something did not hold. {count} artefacts a run; {where}."
    path.write_text("\n".join(["# Fault drill", "", text, "", *HEAD, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
