"""Compare feature extraction from files with the bare forward pass of the network on volumes already in memory.

Both run in one process on the same volumes, in turn; at a ratio of 1 reading and storing cost nothing.

    python -m benchmarks.extraction [--encoder random-r50 ...] [--grid full] [--volumes 4] [--rounds 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.volumes import write_files
from core import encoders
from core.settings import Settings
from core.store import Store
from core.volume import grid_named
from core.workflows import tasks
from core.workflows.tasks import Source


def clocks() -> np.ndarray:
    """Wall time, and processor time of this process with all its threads."""
    return np.array([time.perf_counter(), time.process_time()])


def bare(encoder: str, sources: list[Source], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of the forward passes alone, and the features."""
    import torch

    network = tasks._encoder(encoder, "", settings.device, settings.threads)  # the one the extraction uses
    volumes = [torch.from_numpy(source.load().data)[None, None].to(settings.device) for source in sources]
    start = clocks()
    rows = [network(volume)[0].cpu().numpy() for volume in volumes]
    return clocks() - start, np.stack(rows)


def extraction(encoder: str, sources: list[Source], settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from the files to the stored features, and the features."""
    start = clocks()
    outcomes = tasks.extract_features(settings, sources, encoder, "")
    seconds = clocks() - start
    if failed := [outcome.error for outcome in outcomes if outcome.error]:
        raise SystemExit(failed[0])
    store = Store(settings.workspace)
    return seconds, np.stack([store.get("npz", outcome.value)["features"] for outcome in outcomes])


def main() -> None:
    """Print one row for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--encoder", nargs="+", default=["random-r50", "deepbet"], choices=list(encoders.ENCODERS))
    parser.add_argument("--grid", default="full", choices=["full", "half"])
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    measure.print_machine()
    print("Wall time a volume, processor time in brackets\n")
    measure.print_head("encoder", "bare forward", "files to features", "throughput / bare", "one load", "difference")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder) / "volumes", options.volumes, grid_named(options.grid), brains=1)
        sources = [Source(p.name, str(p), p.name, options.grid, "maximum") for p in paths]
        settings = Settings(Path(folder), device=options.device, workers=0, threads=options.threads)
        for encoder in options.encoder:
            bare(encoder, sources[:1], settings)  # warm
            alone, whole = [], []
            for turn in range(options.rounds):
                seconds, expected = bare(encoder, sources, settings)
                alone.append(seconds)
                fresh = replace(settings, workspace=Path(folder) / f"{encoder}-{turn}")
                seconds, found = extraction(encoder, sources, fresh)
                whole.append(seconds)
            shortest = [np.min(times, axis=0) / options.volumes for times in (alone, whole)]
            start = time.perf_counter()
            tasks._load(sources[0])
            load = time.perf_counter() - start
            (wall, busy), (whole_wall, whole_busy) = shortest
            measure.print_row(
                encoder,
                f"{wall:.2f} s ({busy:.2f} s)",
                f"{whole_wall:.2f} s ({whole_busy:.2f} s)",
                f"{wall / whole_wall:.3f} ({busy / whole_busy:.3f})",
                f"{load:.2f} s",
                f"{measure.difference(found, expected):.0e}",
            )


if __name__ == "__main__":
    main()
