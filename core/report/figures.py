"""The figures of the report: a montage of brains with their grey matter, and interactive charts."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from core import plots
from core.encoders import label_named
from core.errors import SynthScopeError
from core.metrics import METRICS
from core.report.tables import effects_with_noise, marks_of
from core.settings import Settings
from core.study import Cohort, Study
from core.volume import Volume
from core.workflows import Results, load_case, load_case_labels
from core.workflows.judging import FAILS, gate_notes, typical_case
from core.workflows.reader_study import reading_box
from core.workflows.results import qc_of, source_of
from core.workflows.verdicts import Verdict
from core.workflows.viewing import png_file, thumbnail

A_COHORT = 2  # brains of each cohort in the montage
GREY_MATTER = (3, 42, 8, 47)  # FreeSurfer: cerebral and cerebellar cortex; parcels lie above 1000
TINT = np.array([230, 159, 0])
WIDTH = 660  # pixels of a picture
REGIONS = 18  # of a heatmap on one slide
LINE = 14  # letters of a cohort's name above the heatmap
MAIN_METRICS = ("fid", "mmd2-rbf", "ms-ssim")
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Brain:
    """A brain of the montage: three planes, without and with its grey matter in colour, and what stands below."""

    caption: str
    plain: Picture
    tinted: Picture

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.plain.shape[1])

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return int(self.plain.shape[0])

    @property
    def plain_source(self) -> str:
        """The picture as a data URI."""
        return _uri(self.plain)

    @property
    def tinted_source(self) -> str:
        """The picture with grey matter as a data URI."""
        return _uri(self.tinted)


@dataclass(frozen=True)
class Portrait:
    """A cohort on the first slide: its name, what is to be said of it, and its typical brain as PNG with its text."""

    label: str
    words: str
    png: bytes
    text: str


@dataclass(frozen=True)
class Chart:
    """An interactive figure; ``parts`` show the same in pieces that a slide has room for, each with its title."""

    title: str
    note: str
    figure: go.Figure
    parts: tuple[tuple[str, go.Figure], ...] = ()

    @property
    def pieces(self) -> tuple[tuple[str, go.Figure], ...]:
        """Title and figure of each slide, or step of a presentation."""
        return self.parts or ((self.title, self.figure),)


def plotly_json(figure: go.Figure) -> str:
    """Return a figure for plotly.js, in the text colour of the report."""
    return str(go.Figure(figure).update_layout(font={"color": "#1B1F24", "size": 14}).to_json())


def montage(settings: Settings, study: Study, results: Results, drop_individuals: bool) -> list[Brain]:
    """Return the first brains of each cohort; a case that cannot be read is among the rejected of the study."""
    shown = []
    for cohort in (study.real, *study.synthetic):
        if cohort.role == "real" and drop_individuals:
            continue
        scores = qc_of(results, cohort.name)
        for case in cohort.cases[:A_COHORT]:
            try:
                volume = load_case(settings, study, cohort.name, case.case_id)
                labels = load_case_labels(settings, study, cohort.name, case.case_id)
            except SynthScopeError:
                continue
            quality = "quality not known"
            if case.case_id in scores.index:
                own = scores.loc[case.case_id]
                quality = f"lowest QC score {own.min():.2f} ({own.idxmin()})"
            shown.append(Brain(f"{cohort.label}: {case.case_id}, {quality}", *_planes(volume, labels)))
    return shown


def portraits(
    settings: Settings, study: Study, results: Results, judged: Sequence[Verdict], drop_individuals: bool
) -> list[Portrait]:
    """Return each cohort with its answer and its typical brain; a cohort without a brain that can be read has none."""
    answers = {verdict.cohort: verdict.answer for verdict in judged}
    shown = []
    for cohort in study.synthetic if drop_individuals else (study.real, *study.synthetic):
        words = answers.get(cohort.name, f"the reference, N = {len(cohort.cases)}")
        picture = _typical(settings, study, results, cohort)
        shown.append(Portrait(f"{cohort.name}{_kind(cohort)}", f"{words[:1].upper()}{words[1:]}.", *picture))
    return shown


def _typical(settings: Settings, study: Study, results: Results, cohort: Cohort) -> tuple[bytes, str]:
    """Return the axial middle plane of a cohort's typical case, without scores of its first, and its text."""
    case, why = typical_case(results, cohort.name), " Its lowest QC score is the median of the cohort."
    if not case:
        case, why = next((case.case_id for case in cohort.cases), ""), ""
    try:
        plane = thumbnail(settings, source_of(settings, study, cohort.name, case))["axial"]
    except SynthScopeError:
        return b"", ""
    text = f"{'Typical' if why else 'First'} brain of {cohort.label}, {case}: axial middle plane, the left on the left."
    (left, right), (back, front), _ = reading_box(study.grid)
    return _portrait(plane[len(plane) - front : len(plane) - back, left:right]), text + why


def _portrait(plane: Picture) -> bytes:
    image = Image.fromarray(plane)
    image = image.resize((WIDTH * image.width // image.height, WIDTH), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(40)
    draw.text((12, WIDTH // 2), "L", fill="white", font=font, anchor="lm")
    draw.text((image.width - 12, WIDTH // 2), "R", fill="white", font=font, anchor="rm")
    return png_file(np.asarray(image))


def _planes(volume: Volume, labels: Volume | None) -> tuple[Picture, Picture]:
    """Return sagittal, coronal and axial middle planes side by side, without and with grey matter."""
    plain, tinted = [], []
    height = max(volume.data.shape[1:])
    for axis in range(3):
        middle = volume.data.shape[axis] // 2
        grey = np.clip((np.take(volume.data, middle, axis=axis).T[::-1] + 1) * 127.5, 0, 255)
        plane = np.repeat(grey[..., None], 3, axis=2)
        over = plane.copy()
        if labels is not None:
            found = np.take(labels.data, middle, axis=axis).T[::-1]
            matter = np.isin(found, GREY_MATTER) | (found >= 1000)
            over[matter] = 0.65 * over[matter] + 0.35 * TINT
        gap = height - len(plane)
        pad = ((gap // 2, gap - gap // 2), (0, 0), (0, 0))
        plain.append(np.pad(plane, pad))
        tinted.append(np.pad(over, pad))
    sides = volume.data.shape[1] / sum(p.shape[1] for p in plain)  # where the sagittal plane ends
    return _enlarged(plain, sides), _enlarged(tinted, sides)


def _enlarged(planes: list[NDArray[np.floating]], sagittal: float) -> Picture:
    image = Image.fromarray(np.concatenate(planes, axis=1).astype(np.uint8))
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    first = sagittal * WIDTH
    second = first + planes[1].shape[1] / sum(p.shape[1] for p in planes) * WIDTH
    for left, right in ((first, second), (second, WIDTH)):
        draw.text((left + 3, 2), "L", fill="white", font=font)
        draw.text((right - 12, 2), "R", fill="white", font=font)
    return np.asarray(image)


def _uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def charts(study: Study, results: Results, drop_individuals: bool) -> list[Chart]:
    """Return the interactive figures; one without data says so itself."""
    return [similarity(study, results), quality(study, results, drop_individuals), anatomy(study, results)]


def _colours(study: Study) -> dict[str, str]:
    colours = plots.cohort_colours([c.name for c in study.cohorts])
    return {c.label: colours[c.name] for c in study.cohorts}


def similarity(study: Study, results: Results) -> Chart:
    """Draw the main scores with their intervals and floors."""
    labels = {c.name: c.label for c in study.cohorts}
    rows = results.metrics[(results.metrics["variant"] == "corrected") & results.metrics["metric"].isin(MAIN_METRICS)]
    rows = rows.assign(
        cohort=rows["cohort"].map(labels).fillna(rows["cohort"]),
        metric=rows["metric"].map(lambda name: METRICS[name].label),
        encoder=rows["encoder"].map(label_named),
    )
    figure = plots.metric_dots(rows, colours=_colours(study))
    note = (
        "Corrected scores with their 95 % intervals. The tick is the floor: real against real volumes at the same N, "
        "what a perfect generator would score."
    )
    title, by_metric = "Figure 2: similarity", list(rows.groupby("metric", sort=False))
    parts = tuple((f"{title}, {name}", plots.metric_dots(part, colours=_colours(study))) for name, part in by_metric)
    return Chart(title, note, figure, parts)


def quality(study: Study, results: Results, drop_individuals: bool) -> Chart:
    """Draw the QC scores of every volume, as in the paper's Figure 3."""
    cohorts = [c for c in study.cohorts if c.role != "training" and not (drop_individuals and c.role == "real")]
    threshold = results.quality["threshold"].dropna().head(1).tolist()
    scores = {c.label: qc_of(results, c.name) for c in cohorts}
    figure = plots.qc_scatter(scores, threshold[0] if threshold else None, colours=_colours(study))
    left_out = " Individual real scans are left out; Table 2 has their pass rate." if drop_individuals else ""
    return Chart("Figure 3: quality scores", f"Each point is one score of one volume.{left_out}", figure)


def anatomy(study: Study, results: Results) -> Chart:
    """Draw Cohen's d of every region, cohorts that fail the gate marked; on slides, the two groups of regions apart."""
    failing = marks_of(study, results)
    names = {c.name: f"{failing.get(c.name, '')}{c.name}{_kind(c)}" for c in study.cohorts}
    lines = {name: "<br>".join(textwrap.wrap(label, LINE)) for name, label in names.items()}
    effects = effects_with_noise(results)
    effects = effects.assign(cohort=effects["cohort"].map(lines).fillna(effects["cohort"]))
    groups = effects["group"].unique() if len(effects) else ()
    gated = [lines[name] for name, mark in failing.items() if mark == FAILS and name in lines]
    draw = partial(plots.effect_heatmap, gated=gated)
    title = "Figure 4: effect sizes"
    scale = float(effects["cohens_d"].abs().max()) if len(effects) else 0.0  # the same on every slide
    parts = tuple(
        (f"{title}, {name}", draw(rows, scale=scale))
        for group in groups
        for name, rows in _in_pieces(str(group), effects[effects["group"] == group])
    )
    note = "Cohen's d of each region; 0 is best, blue: larger in real brains."
    note += " In brackets: within the noise of the engine." if effects["noise_floor"].notna().any() else ""
    note = " ".join([note, *gate_notes([failing.get(name, "") for name in results.effect_sizes["cohort"].unique()])])
    return Chart(title, note, draw(effects), parts)


def _in_pieces(group: str, effects: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Share a group of regions out on as few slides as hold them in large type."""
    regions = effects["region"].unique()
    pieces = np.array_split(regions, -(-len(regions) // REGIONS))
    names = [f"{group} ({n} of {len(pieces)})" if len(pieces) > 1 else group for n in range(1, len(pieces) + 1)]
    return [(name, effects[effects["region"].isin(piece)]) for name, piece in zip(names, pieces, strict=True)]


def _kind(cohort: Cohort) -> str:
    return f" ({re.split('[:,]', cohort.origin)[0]})" if cohort.origin else ""
