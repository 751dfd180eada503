"""What the embedded engine costs and how right it is: time, memory, known changes, and a second opinion.

Usage, from the root of the repository; each part runs when its data are named:

    python -m benchmarks.segmenter                                        time, memory, and the control cohorts
    python -m benchmarks.segmenter --labels DIR --people DIR              Dice on people held out of the training
    python -m benchmarks.segmenter --t1 SCAN --meshnet DIR                volumes of a real scan beside MeshNet's

``--labels`` and ``--people`` are those of the training. MeshNet (Fedorov et al. 2017, aparc50 weights of brainchop)
sees the whole head at 1 mm; the volumes of the embedded engine are divided by the affine's determinant, which brings
them back to the size of the scan.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from benchmarks.measure import measured
from core import anatomy, preprocess, segmentation, simulate
from core.preprocess.scans import read_scan
from core.segmentation import embedded, label_names
from core.segmentation.labelmaps import prepare
from core.segmentation.train import split_people, validate
from core.volume import FULL, GRIDS, HALF, resample

SEED = 8101
PAIRS = 8  # people of each control comparison
RENDERINGS = 6  # of each held-out person
# Of MeshNet's 50 classes those that both call the same; white matter includes the corpus callosum (15).
SAME = {
    "cerebral white matter": (1, 15),
    "cerebellum": (3, 4),
    "thalamus": (5,),
    "caudate": (6,),
    "putamen": (7,),
    "hippocampus": (10,),
}
OURS = {"cerebellum": ("cerebellum white matter", "cerebellum cortex")}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--people", type=Path)
    parser.add_argument("--t1", type=Path)
    parser.add_argument("--meshnet", type=Path)
    options = parser.parse_args()
    if options.labels:
        held_out(options.labels, options.people)
    if options.t1:
        real_scan(options.t1, options.meshnet)
    if not options.labels and not options.t1:
        cost()
        controls()


def cost() -> None:
    """Print processor time and peak memory of one volume with quality control, on both grids."""
    torch.set_num_threads(1)
    for grid in GRIDS.values():
        volume = simulate.simulate_case(grid, SEED, 0).volume
        embedded.segment(volume)
        _, seconds, peak = measured(lambda volume=volume: embedded.segment(volume).volumes["total intracranial"])
        start = time.perf_counter()
        torch.set_num_threads(2)
        embedded.segment(volume)
        wall = time.perf_counter() - start
        torch.set_num_threads(1)
        print(
            f"{grid.name}: {seconds:.2f} s on one core, {wall:.2f} s with two threads, {peak:.0f} MiB more", flush=True
        )


def controls() -> None:
    """Print how much every measured volume moves when one structure is changed by a known amount in the same people."""
    segment = segmentation.build("embedded")
    plain = [simulate.simulate_case(HALF, SEED, k) for k in range(PAIRS)]
    before = pd.DataFrame([segment(case.volume).volumes for case in plain])
    for defect, strength in (("shrunken-hippocampus", 0.10), ("shrunken-hippocampus", 0.30), ("large-ventricles", 1.0)):
        changed = [simulate.simulate_case(HALF, SEED, k, defect=defect, strength=strength) for k in range(PAIRS)]
        after = pd.DataFrame([segment(case.volume).volumes for case in changed])
        known = pd.DataFrame([c.volumes for c in changed]).sum() / pd.DataFrame([c.volumes for c in plain]).sum() - 1
        moved = after.sum() / before.sum() - 1
        table = pd.DataFrame({"true": known, "measured": moved})
        kept = [n for n in label_names().values() if not n.startswith("ctx-") and "cerebral" not in n and n != "csf"]
        table = table.loc[kept]
        print(f"{defect}:{strength}, mean change over {PAIRS} people")
        print(table[table.abs().max(axis=1) > 0.005].map(lambda x: f"{x:+.1%}").to_string(), flush=True)
    collapsed = [simulate.simulate_case(HALF, SEED, k, defect="collapse", strength=0.8) for k in range(24)]
    real = [simulate.simulate_case(HALF, SEED + 1, k) for k in range(24)]
    tables = [
        pd.DataFrame(
            [segment(c.volume).volumes for c in cases], index=pd.Index([f"p{k}" for k in range(24)], name="subject")
        )
        for cases in (real, collapsed)
    ]
    effects = anatomy.effect_sizes(*tables)
    print(
        f"collapse:0.8, 24 people a side: median |d| {effects['cohens_d'].abs().median():.2f}, "
        f"median spread ratio (log) {effects['spread_ratio'].median():.2f}"
    )


def held_out(labels: Path, people: Path) -> None:
    """Print Dice of every structure on people the training never saw: mean and range over renderings it never used."""
    torch.set_num_threads(2)
    _, others = split_people(prepare(labels, people))
    network = embedded.network(embedded.ASSETS)
    scores = pd.DataFrame([validate(network, others, SEED + k) for k in range(RENDERINGS)])
    names = label_names()
    for key, column in scores.items():
        name = names[int(key)] if str(key).isdigit() else key
        print(f"{name:34s} {column.mean():.3f} ({column.min():.3f} to {column.max():.3f})")


def real_scan(scan: Path, meshnet: Path) -> None:
    """Print volumes of a real scan by the embedded engine and by MeshNet."""
    made = preprocess.preprocess(scan, FULL)
    shrink = abs(np.linalg.det(made.affine[:3, :3]))
    theirs = _meshnet_volumes(scan, meshnet)
    for grid in (FULL, HALF):
        volume = made.volume if grid == FULL else preprocess.preprocess(scan, HALF).volume
        found = embedded.segment(volume)
        print(f"{grid.name} grid, QC: {', '.join(f'{k} {v:.2f}' for k, v in found.qc.items())}")
        for name in SAME:
            parts = [f"{side} {part}" for side in ("left", "right") for part in OURS.get(name, (name,))]
            ours = sum(found.volumes[part] for part in parts) / shrink
            print(
                f"  {name:22s} {ours / 1000:8.1f} ml, MeshNet {theirs[name] / 1000:8.1f} ml, "
                f"{ours / theirs[name] - 1:+.1%}"
            )


def _meshnet_volumes(scan: Path, folder: Path) -> dict[str, float]:
    """Return mm³ by MeshNet; the network needs a 256³ head at 1 mm with 5 % and 95 % quantiles at 0 and 1."""
    head = read_scan(scan)
    affine = np.eye(4)
    affine[:3, 3] = (head.affine @ np.r_[(np.array(head.data.shape) - 1) / 2, 1])[:3] - 127.5
    head = resample(replace(head, data=head.data - head.data.min()), (256, 256, 256), affine)
    # The network was trained on axes left, inferior, anterior.
    image = np.ascontiguousarray(np.flip(head.data, (0, 2)).transpose(0, 2, 1))
    low, high = np.quantile(image, (0.05, 0.95))
    x = torch.from_numpy(((image - low) / (high - low)).astype(np.float32))[None, None]
    layers = json.loads((folder / "model.json").read_text())["layers"]
    numbers, start = np.fromfile(folder / "model.bin", "<f4"), 0
    torch.set_num_threads(2)
    with torch.inference_mode():
        for number, layer in enumerate(layers):
            shape = [layer["kernel_size"]] * 3 + [layer["in_channels"], layer["out_channels"]]
            size = int(np.prod(shape))
            kernel = torch.from_numpy(numbers[start : start + size].reshape(shape).transpose(4, 3, 0, 1, 2).copy())
            bias = torch.from_numpy(numbers[start + size : start + size + shape[-1]].copy())
            start += size + shape[-1]
            if number == len(layers) - 1:
                counts = torch.zeros(shape[-1], dtype=torch.int64)
                for slab in x.split(32, dim=2):
                    chosen = F.conv3d(slab, kernel, bias).argmax(1)
                    counts += torch.bincount(chosen.flatten(), minlength=shape[-1])
                break
            x = F.elu(F.conv3d(x, kernel, bias, padding=layer["padding"], dilation=layer["dilation"]), inplace=True)
    return {name: float(counts[list(classes)].sum()) for name, classes in SAME.items()}


if __name__ == "__main__":
    main()
