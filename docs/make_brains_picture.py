"""Draw one real and one brain of each generator of the demo study, three planes each: docs/images/brains.png.

Run it on the workspace of a finished demo: ``python -m docs.make_brains_picture WORKSPACE``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.generators.training import middle_planes
from core.settings import from_environment
from core.study import read_study
from core.volume import load
from core.workflows import demo_folder

SCALE = 2
TITLE = 26


def main() -> None:
    """Write the picture: the first case of the real cohort and of every sampled one."""
    settings = replace(from_environment(), workspace=Path(sys.argv[1]).resolve())
    study = read_study(demo_folder(settings) / "study.toml")
    cohorts = [study.real, *(c for c in study.synthetic if "sampled" in c.origin)]
    pictures = []
    for cohort in cohorts:
        planes = Image.fromarray(middle_planes(load(cohort.cases[0].path).data))
        planes = planes.resize((planes.width * SCALE, planes.height * SCALE), Image.Resampling.BICUBIC)
        panel = Image.new("L", (planes.width, planes.height + TITLE), 0)
        panel.paste(planes, (0, TITLE))
        title = cohort.name.replace("α", "alpha")  # no Greek in the font
        title = "real (simulated)" if cohort is study.real else title
        ImageDraw.Draw(panel).text((6, 3), title, fill=255, font=ImageFont.load_default(18))
        pictures.append(np.asarray(panel))
    if len(pictures) % 2:
        pictures.append(np.zeros_like(pictures[0]))
    columns = [np.vstack(pictures[start::2]) for start in (0, 1)]
    Image.fromarray(np.hstack(columns)).save(Path(__file__).parent / "images" / "brains.png", optimize=True)


if __name__ == "__main__":
    main()
