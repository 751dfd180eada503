"""How the product behaves with many cases: the cost of a volume, pages of a study of 10,000, a store of a million.

    python -m benchmarks.scale cost [--sizes 100 1000 10000] [--metrics fid c2st] [--segment] [--out FILE.json]
    python -m benchmarks.scale pages [--cases 10000] [--rounds 3]
    python -m benchmarks.scale lookup [--artefacts 1000000]

`cost` evaluates studies of simulated volumes (`benchmarks.cost`), whose segmentations are given as tables unless
``--segment`` is named. `pages` makes a study whose cases are links to one volume and whose tables hold made-up
numbers, and opens every page in a browser: times are what a reader waits for, no result means anything. `lookup` fills
a store with small artefacts in its own layout and reads some of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from playwright.sync_api import Page, sync_playwright

from benchmarks.cost import measure_cost
from benchmarks.measure import processor_time
from benchmarks.pages import QUIET, change_page, report
from benchmarks.toggle import reach, serve
from core import anatomy
from core.quality import QC_SCORES
from core.settings import Settings
from core.store import Store, content_key, write_csv, write_json
from core.study import PROVENANCE, CohortSpec, StudySettings, StudySpec, write_spec
from core.volume import HALF, save, template
from core.workflows import demo_folder, remember_study, results_folder
from core.workflows.results import CASE_COLUMNS

PAGES = ("Overview", "Viewer", "Similarity", "Quality", "Anatomy", "Reading room", "Report", "Studies", "Jobs")
VIEWS = {"Contact sheet": ".sheet button", "Case list": "[data-testid=stDataFrame] canvas"}  # of the viewer


def write_study(settings: Settings, folder: Path, cases: int) -> str:
    """Write a study of two cohorts with ``cases`` cases together, as if it had been evaluated; return its path."""
    folder.mkdir(parents=True)
    save(template(HALF), folder / "brain.nii.gz")
    rows = [(cohort, f"{cohort}-{i:06d}") for cohort in ("real", "Alpha") for i in range(cases // 2)]
    for cohort, case in rows:
        (folder / cohort).mkdir(exist_ok=True)
        os.link(folder / "brain.nii.gz", folder / cohort / f"{case}.nii.gz")
    cohort = {"Alpha": CohortSpec(images="Alpha/*.nii.gz")}
    spec = StudySpec(name="many", grid="half", real=CohortSpec(images="real/*.nii.gz"), synthetic=cohort)
    write_spec(spec, folder / "study.toml")
    path = remember_study(settings, str(folder / "study.toml"))
    write_tables(results_folder(settings, Path(path)), rows)
    return path


def write_tables(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Write made-up results of all cases."""
    rng, n = np.random.default_rng(0), len(rows)
    named = pd.DataFrame(rows, columns=["cohort", "subject"])
    qc = pd.DataFrame(rng.uniform(0.7, 0.95, (n, len(QC_SCORES))), columns=list(QC_SCORES))
    columns = anatomy.volume_columns(True)
    volumes = pd.DataFrame(rng.uniform(900, 1100, (n, len(columns))), columns=columns)
    for name, table in (("qc.csv", qc), ("volumes.csv", volumes)):
        write_csv(pd.concat([named, table], axis=1), folder / name)
    gate = {"n": n // 2, "failed_scores": 9, "failed_volumes": 9, "pass_rate": 0.95, "ci_low": 0.94, "ci_high": 0.96}
    gate |= {"threshold": 0.705, "reliable": True}
    write_csv(pd.DataFrame([{"cohort": name} | gate for name in ("real", "Alpha")]), folder / "quality.csv")
    halves = [
        volumes[named["cohort"] == name].set_axis(named["subject"][named["cohort"] == name])
        for name in ("real", "Alpha")
    ]
    write_csv(anatomy.effect_sizes(*halves, n_boot=100).assign(cohort="Alpha"), folder / "effect_sizes.csv")
    regions = anatomy.regions()
    many = pd.concat([regions] * n, ignore_index=True)
    many = many.assign(
        cohort=np.repeat(named["cohort"], len(regions)).to_numpy(),
        subject=np.repeat(named["subject"], len(regions)).to_numpy(),
        volume=1000.0,
        z=rng.standard_normal(len(many)),
        percentile=50.0,
    )
    write_csv(many, folder / "percentiles.csv")
    point = {"encoder": "random-r50", "method": "pca", "share_x": 0.3, "share_y": 0.2}
    points = named.rename(columns={"subject": "case"}).assign(x=rng.normal(size=n), y=rng.normal(size=n), **point)
    write_csv(points, folder / "map.csv")
    score = {"cohort": "Alpha", "metric": "fid", "encoder": "random-r50", "variant": "corrected", "direction": "lower"}
    score |= {"value": 0.2, "ci_low": 0.1, "ci_high": 0.3, "floor": 0.02, "n_real": n // 2, "n_synthetic": n // 2}
    write_csv(pd.DataFrame([score | {"fingerprint": "abc"}]), folder / "metrics.csv")
    listed = named.rename(columns={"subject": "case"}).assign(status="ok").reindex(columns=list(CASE_COLUMNS))
    write_csv(listed, folder / "cases.csv")
    write_json({"complete": True, "gaps": [], "fingerprints": {"abc": {"seed": 0}}}, folder / PROVENANCE)


def measure_pages(cases: int, rounds: int) -> None:
    """Open every page of a study of many cases, in turn, and print what it takes."""
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        settings = Settings(workspace=Path(place) / "workspace")
        write_study(settings, Path(place) / "study", cases)
        demo = demo_folder(settings) / "study.toml"  # counts as made, so that no job computes beside the browser
        write_json({"complete": True}, results_folder(settings, demo) / PROVENANCE)
        server, url = serve(settings.workspace)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
            study = results_folder(settings, Path(place) / "study" / "study.toml").name
            reach(page, f"{url}/?study={study}")
            page.get_by_role("heading", name="Overview").wait_for(timeout=120_000)
            page.wait_for_function(QUIET, timeout=120_000)
            times = [take_times(page, server.pid) for _ in range(rounds + 1)]
            for name in times[0]:
                (first, *_), *later = (one[name] for one in times)
                print(f"{cases} cases, {name}: first time {first:.2f} s", flush=True)
                report(f"{cases} cases, {name}: again", [waited for waited, *_ in later])
                of_server, of_browser = (statistics.median(used) for used in list(zip(*later, strict=True))[1:])
                print(f"  processor: server {of_server:.2f} s, browser {of_browser:.2f} s", flush=True)
            print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        finally:
            browser.close()
            server.terminate()
            server.wait()


def take_times(page: Page, server: int) -> dict[str, tuple[float, float, float]]:
    """Open every page, and the viewer's sheet and list; see `take_time`."""
    times = {name: take_time(page, server, lambda name=name: change_page(page, name)) for name in PAGES}
    change_page(page, "Viewer")
    times |= {name: take_time(page, server, lambda name=name: change_view(page, name)) for name in VIEWS}
    page.get_by_test_id("stMain").get_by_text("Brains", exact=True).click(timeout=120_000)
    change_page(page, "Jobs")  # the browser has drawn the brains before the next round
    return times


def take_time(page: Page, server: int, wait: Callable[[], float]) -> tuple[float, float, float]:
    """Return the seconds waited, and those of processor time that server and browser used meanwhile."""
    page.wait_for_timeout(3000)  # what the browser still draws of the page before
    before = used(server)
    waited = wait()
    after = used(server)
    return waited, after[0] - before[0], after[1] - before[1]


def change_view(page: Page, name: str) -> float:
    """Return the seconds from a click on a form of the viewer to the whole of it."""
    start = time.perf_counter()
    page.get_by_test_id("stMain").get_by_text(name, exact=True).click(timeout=120_000)
    page.locator(VIEWS[name]).first.wait_for(timeout=120_000)
    page.wait_for_function(QUIET, timeout=120_000, polling=10)
    return time.perf_counter() - start


def used(server: int) -> tuple[float, float]:
    """Return the processor time of the server, and of the other children of this process: the browser."""
    children = psutil.Process().children(recursive=True)
    return processor_time(c for c in children if c.pid == server), processor_time(
        c for c in children if c.pid != server
    )


def measure_lookup(artefacts: int) -> None:
    """Fill a store and print how long it takes to find, and to read, one of its artefacts."""
    with tempfile.TemporaryDirectory() as place:
        store, made = Store(Path(place)), set()
        for number in range(artefacts):
            path = store.path("json", content_key("filler", 1, [str(number)], {}))
            if path.parent not in made:
                path.parent.mkdir(parents=True, exist_ok=True)
                made.add(path.parent)
            path.write_bytes(b'{"value": 1}')
        rng = np.random.default_rng(0)
        there = [content_key("filler", 1, [str(number)], {}) for number in rng.integers(0, artefacts, 2000)]
        absent = [content_key("filler", 2, [str(number)], {}) for number in range(2000)]
        for what, keys, look in (
            ("read", there, lambda key: store.get("json", key)),
            ("absent", absent, lambda key: store.has("json", key)),
        ):
            times = []
            for key in keys:
                start = time.perf_counter()
                look(key)
                times.append(time.perf_counter() - start)
            worst = sorted(times)[int(0.99 * len(times))]
            print(
                f"{artefacts} artefacts, {what}: {1000 * statistics.median(times):.3f} ms (p99 {1000 * worst:.3f} ms)"
            )


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cost", "pages", "lookup"))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--artefacts", type=int, default=1_000_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--encoders", nargs="+", default=["deepbet"])
    parser.add_argument("--metrics", nargs="+", default=["fid", "mmd2-rbf", "coverage", "c2st"])
    parser.add_argument("--segment", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--place", type=Path, help="folder for volumes and results, kept; a temporary one without it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if options.what == "cost":
        settings = StudySettings(encoders=tuple(options.encoders), metrics=tuple(options.metrics))
        with tempfile.TemporaryDirectory() as place:
            measure_cost(
                options.place or Path(place),
                options.sizes,
                settings,
                segmented=not options.segment,
                workers=options.workers,
                out=options.out,
            )
    elif options.what == "pages":
        measure_pages(options.cases, options.rounds)
    else:
        measure_lookup(options.artefacts)


if __name__ == "__main__":
    main()
