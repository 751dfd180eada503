"""Writes a program that speaks mri_synthseg's interface, for tests: made-up numbers, the published files and manners.

What it imitates of SynthSeg 2.0: the three forms of --i (scan, folder, text file of paths), the names of the outputs, labels
at 1 mm in the space of the scan, the order of the columns, `subject` in a shared table and an empty cell in a scan's own,
float32 volumes with all digits, scores with four decimals, CRLF, an error in one scan that lets the others go on and ends
with status 1, and parcels that add up to the white matter.
"""

import json
import sys
from pathlib import Path

PROGRAM = """#!{python}
import argparse, csv, json, os, sys, time
from pathlib import Path
import nibabel as nib
import numpy as np
nib.openers.Opener.default_compresslevel = 1

HERE = Path(__file__).parent
NAMES = json.loads((HERE / "names.json").read_text(encoding="utf-8"))
calls = HERE / "calls.jsonl"
number = len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0
with calls.open("a") as stream:
    stream.write(json.dumps({{"argv": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS"),
                              "home": os.environ.get("FREESURFER_HOME"), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES")}}) + "\\n")
faults = json.loads((HERE / "faults.json").read_text(encoding="utf-8")).get(str(number), {{}})

parser = argparse.ArgumentParser()
for name in ("i", "o", "vol", "qc", "post", "resample"):
    parser.add_argument("--" + name)
for name in ("parc", "fast", "ct", "cpu", "v1") + (() if faults.get("old") else ("robust",)):
    parser.add_argument("--" + name, action="store_true")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--crop", nargs="+", type=int)
args = parser.parse_args()
if faults.get("import"):
    import tensorflow_that_is_not_there
print("SynthSeg-robust 2.0" if getattr(args, "robust", False) else "SynthSeg 2.0")

def outputs(paths, out, suffix):
    if out is None:
        return [None] * len(paths), False
    if args.i.endswith(".txt"):
        return [line for line in Path(out).read_text(encoding="utf-8").splitlines() if line], False
    if suffix is None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        return [out] * len(paths), True
    if Path(args.i).is_dir() or ".nii" not in out:
        Path(out).mkdir(parents=True, exist_ok=True)
        return [str(Path(out) / Path(p).name.replace(".nii", "_" + suffix + ".nii")) for p in paths], False
    return [out], False

def write(path, shared, header, row):
    if shared:
        with open(path, "a") as stream:
            csv.writer(stream).writerow(row)
    else:
        with open(path, "w") as stream:
            csv.writer(stream).writerows([["", *header], row])

if args.i.endswith(".txt"):
    paths = [line for line in Path(args.i).read_text(encoding="utf-8").splitlines() if line]
elif Path(args.i).is_dir():
    paths = sorted(str(p) for p in Path(args.i).glob("*.nii*"))
else:
    paths = [args.i]
labels_out, _ = outputs(paths, args.o, "synthseg")
vol_out, vol_shared = outputs(paths, args.vol, None)
qc_out, qc_shared = outputs(paths, args.qc, None)
structures = {{int(k): v for k, v in NAMES["labels"].items() if int(k) < 1000}}
parcels = {{int(k): v for k, v in NAMES["labels"].items() if int(k) > 1000}} if args.parc else {{}}
vol_header = ["total intracranial", *structures.values(), *parcels.values()]
qc_header = NAMES["qc"]
for out, shared, header in ((vol_out, vol_shared, vol_header), (qc_out, qc_shared, qc_header)):
    if shared and out:
        with open(out[0], "w") as stream:
            csv.writer(stream).writerow(["subject", *header])

def one(i, path):
    image = nib.load(path)
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    zoom = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if np.any(abs(zoom - 1) > 0.05):
        for axis in range(3):
            data = data.repeat(round(float(zoom[axis])), axis)
        scale = np.diag([*(1 / zoom), 1])
        scale[:3, 3] = 0.5 / zoom - 0.5
        affine = affine @ scale
    brain = data > 0.2
    ids = np.array([*structures, *parcels] if parcels else [*structures])
    ids = ids[(ids != 3) & (ids != 42)] if parcels else ids
    labels = np.zeros(data.shape, np.int32)
    labels[brain] = ids[(np.arange(data.shape[1]) * len(ids) // data.shape[1])][np.nonzero(brain)[1]]
    nib.save(nib.Nifti1Image(labels, affine), labels_out[i])
    size = np.float32(brain.sum() / len(structures))
    sizes = size * np.linspace(0.5, 1.5, len(structures), dtype=np.float32)
    white = sizes[list(structures).index(2)] + sizes[list(structures).index(41)]
    cortex = white * np.arange(1, len(parcels) + 1, dtype=np.float32) / max(1, sum(range(1, len(parcels) + 1)))
    volumes = np.around(np.concatenate([[sizes.sum()], sizes, cortex]).astype(np.float32), 3)
    row = [str(v) for v in volumes]
    name = os.path.basename(path).replace(".nii.gz", "")
    if vol_out[i]:
        write(vol_out[i], vol_shared, vol_header, [name, *row])
    scores = ["%.4f" % q for q in 0.9 - 0.01 * np.arange(8)]
    if qc_out[i]:
        write(qc_out[i], qc_shared, qc_header, [name, *scores])

errors = []
for i, path in enumerate(paths):
    name = os.path.basename(path).replace(".nii.gz", "")
    print("predicting %d/%d" % (i + 1, len(paths)), flush=True)
    if faults.get("crash_at") == i:
        os.kill(os.getpid(), faults.get("signal", 11))
    if faults.get("exit_at") == i:
        sys.exit("out of luck")
    if faults.get("hang_at") == i:
        if os.fork() == 0:  # the child of a hanging script must end with it
            (HERE / "child").write_text(str(os.getpid()))
        time.sleep(600)
    if name in faults.get("fail", ()):
        errors.append(path)
        print("\\nthe following problem {occurred} with image %s :\\nTraceback (most recent call last):\\n  File x\\nValueError: %s is bad\\n"
              "\\nresuming program execution\\n" % (path, name))
        continue
    one(i, path)
if errors:
    print("\\nERROR: some problems {occurred} for the following inputs (see corresponding errors above):", *errors, sep="\\n")
    sys.exit(1)
"""


def install(folder: Path, names: dict[int, str], qc: tuple[str, ...], *, occurred: str = "occured") -> Path:
    """Write the program as ``folder/bin/mri_synthseg`` with FreeSurfer's build stamp; return its path."""
    (folder / "bin").mkdir(parents=True)
    program = folder / "bin" / "mri_synthseg"
    program.write_text(PROGRAM.format(python=sys.executable, occurred=occurred))
    program.chmod(0o755)
    (program.parent / "names.json").write_text(json.dumps({"labels": names, "qc": qc}))
    (folder / "build-stamp.txt").write_text("freesurfer-linux-7.4.1-20230613-abc\n")
    set_faults(program, {})
    return program


def set_faults(program: Path, faults: dict[int, dict]) -> None:
    """Say what goes wrong, by number of the call (0 is the first call ever)."""
    (program.parent / "faults.json").write_text(json.dumps(faults))


def calls(program: Path) -> list[dict]:
    """Return how the program was called so far."""
    log = program.parent / "calls.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
