"""Slides for a lab meeting: verdicts, brains, one slide a figure, the gate, methods and limits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.util import Inches, Pt

from core import plots
from core.report.figures import Brain, Chart
from core.report.tables import Table
from core.store import write_atomically

WIDTH, HEIGHT = 13.333, 7.5  # inches
MARGIN = 0.6
BODY = 1.35  # where the body begins
INK, GREY = RGBColor(0x1B, 0x1F, 0x24), RGBColor(0x4A, 0x55, 0x60)
BLANK = 6  # layout without placeholders
COLUMNS, ROWS = 3, 2  # brains on a slide
LINES = 7  # sentences on a slide


def write_slides(
    path: Path,
    title: str,
    subtitle: str,
    verdicts: Sequence[str],
    brains: Sequence[Brain],
    charts: Sequence[Chart],
    tables: Sequence[Table],
    words: Sequence[tuple[str, Sequence[str]]],
) -> int:
    """Write the slides; every figure is a picture, every table can be edited.

    Parameters
    ----------
    path : Path
        PPTX file.
    title, subtitle : str
        Of the first slide.
    verdicts : sequence of str
        A sentence a cohort.
    brains, charts, tables : sequence
        In their order.
    words : sequence of (heading, lines)
        The last slides.

    Returns
    -------
    int
        Number of slides.
    """
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(WIDTH), Inches(HEIGHT)
    first = _slide(deck, title)
    _text(first, [subtitle], 16, GREY)
    _pages(deck, "In short", verdicts, 16)
    per_slide = COLUMNS * ROWS
    for start in range(0, len(brains), per_slide):
        _brains(_slide(deck, "Figure 1: brains, segmentation, quality"), brains[start : start + per_slide])
    for chart in charts:
        for name, figure in chart.pieces:
            _picture(_slide(deck, name), plots.picture(figure, font=9 if "Figure 4" in name else 11), chart.note)
    for table in tables:
        _table(_slide(deck, table.title), table)
    for heading, lines in words:
        _pages(deck, heading, lines, 14)
    write_atomically(path, lambda temporary: deck.save(str(temporary)))
    return len(deck.slides)


def _slide(deck: Any, title: str) -> Any:
    slide = deck.slides.add_slide(deck.slide_layouts[BLANK])
    box = slide.shapes.add_textbox(Inches(MARGIN), Inches(0.35), Inches(WIDTH - 2 * MARGIN), Inches(0.9))
    box.text_frame.word_wrap = True
    _line(box.text_frame.paragraphs[0], title, 28, INK, bold=True)
    return slide


def _line(paragraph: Any, text: str, size: float, colour: RGBColor, *, bold: bool = False) -> None:
    run = paragraph.add_run()
    run.text = text
    run.font.size, run.font.bold, run.font.color.rgb = Pt(size), bold, colour


def _text(slide: Any, lines: Sequence[str], size: float, colour: RGBColor, top: float = BODY) -> None:
    box = slide.shapes.add_textbox(Inches(MARGIN), Inches(top), Inches(WIDTH - 2 * MARGIN), Inches(HEIGHT - top - 0.3))
    box.text_frame.word_wrap = True
    for number, line in enumerate(lines):
        paragraph = box.text_frame.paragraphs[0] if number == 0 else box.text_frame.add_paragraph()
        paragraph.space_after = Pt(size / 2)
        _line(paragraph, line, size, colour)


def _pages(deck: Any, heading: str, lines: Sequence[str], size: float) -> None:
    for start in range(0, len(lines), LINES):
        _text(_slide(deck, heading), lines[start : start + LINES], size, INK)


def _brains(slide: Any, brains: Sequence[Brain]) -> None:
    width = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * 0.2) / COLUMNS
    for number, brain in enumerate(brains):
        left = MARGIN + number % COLUMNS * (width + 0.2)
        top = BODY + number // COLUMNS * 2.9
        buffer = io.BytesIO()
        Image.fromarray(brain.tinted).save(buffer, format="PNG", optimize=True)
        shape = slide.shapes.add_picture(buffer, Inches(left), Inches(top), width=Inches(width))
        shape.name = brain.caption
        below = slide.shapes.add_textbox(Inches(left), Inches(top) + shape.height, Inches(width), Inches(0.6))
        below.text_frame.word_wrap = True
        _line(below.text_frame.paragraphs[0], brain.caption, 11, INK)


def _picture(slide: Any, png: bytes, note: str) -> None:
    with Image.open(io.BytesIO(png)) as image:
        share = image.width / image.height
    high = HEIGHT - BODY - 0.75
    width = min(WIDTH - 2 * MARGIN, high * share)
    left = (WIDTH - width) / 2
    slide.shapes.add_picture(io.BytesIO(png), Inches(left), Inches(BODY), width=Inches(width))
    _text(slide, [note], 11, GREY, top=HEIGHT - 0.7)


def _table(slide: Any, table: Table) -> None:
    rows, columns = len(table.rows) + 1, len(table.columns)
    place = (Inches(MARGIN), Inches(BODY), Inches(WIDTH - 2 * MARGIN), Inches(0.4 * rows))
    cells = slide.shapes.add_table(rows, columns, *place).table
    size = 9 if columns > 6 or rows > 14 else 12
    for i, row in enumerate((table.columns, *table.rows)):
        for j, text in enumerate(row):
            frame = cells.cell(i, j).text_frame
            _line(frame.paragraphs[0], text, size, RGBColor(0xFF, 0xFF, 0xFF) if i == 0 else INK, bold=i == 0)
    _text(slide, [table.note], 9, GREY, top=HEIGHT - 0.65)
