"""Slides for a lab meeting: verdicts, brains, one slide a figure, the gate, methods and limits."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from core import plots
from core.report.figures import Brain, Chart, Portrait
from core.report.tables import Table
from core.store import write_atomically

WIDTH, HEIGHT = 13.333, 7.5  # inches
MARGIN, GAP = 0.6, 0.2
BODY = 1.3  # where the body begins
ROOM = HEIGHT - BODY - 0.35  # for the body
INK, GREY, WHITE = RGBColor(0x1B, 0x1F, 0x24), RGBColor(0x4A, 0x55, 0x60), RGBColor(0xFF, 0xFF, 0xFF)
TITLE_AND_TEXT, TITLE_ONLY = 1, 5  # layouts
COLUMNS, ROWS = 3, 2  # brains on a slide
COVER = 1.75  # where the cohorts of the first slide begin
MOST_COHORTS = 12  # of the first slide, in three rows
LARGEST, LEAST = 20, 12  # points of a text; what is too long at the least goes on over the page
MOST_LIMITS = 2  # slides
LETTER, LINE = 0.56, 1.22  # width of a letter and height of a line, in parts of the size: of a wide font
PADDING = (0.45, 0.1)  # inches around the text of a box, both sides together, and its bullets


def write_slides(
    path: Path,
    first: tuple[str, str, Sequence[Portrait]],
    verdicts: Sequence[str],
    brains: Sequence[Brain],
    charts: Sequence[Chart],
    tables: Sequence[Table],
    words: Sequence[tuple[str, Sequence[str]]],
) -> int:
    """Write the slides; every figure is a picture with its text, every table can be edited.

    Parameters
    ----------
    path : Path
        PPTX file.
    first : (title, subtitle, portraits)
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
    _cover(deck, *first)
    _pages(deck, "In short", verdicts)
    _montage(deck, brains)
    for chart in charts:
        for name, figure in chart.pieces:
            _picture(_slide(deck, name), figure, name, chart.note)
    for table in tables:
        _table_pages(deck, table)
    for heading, lines in words:
        _pages(deck, heading, lines, MOST_LIMITS)
    write_atomically(path, lambda temporary: deck.save(str(temporary)))
    return len(deck.slides)


# -- what every slide has ----------------------------------------------------------------------------------------------


def _slide(deck: Any, title: str, layout: int = TITLE_ONLY) -> Any:
    slide = deck.slides.add_slide(deck.slide_layouts[layout])
    size = 28 if _lines(title, 28, WIDTH - 2 * MARGIN) == 1 else 22
    _place(slide.shapes.title, 0.3, BODY - 0.4)
    slide.shapes.title.text_frame.vertical_anchor = MSO_ANCHOR.TOP
    _line(slide.shapes.title.text_frame.paragraphs[0], title, size, INK, bold=True)
    return slide


def _place(shape: Any, top: float, height: float) -> None:
    shape.left, shape.top, shape.width, shape.height = map(Inches, (MARGIN, top, WIDTH - 2 * MARGIN, height))


def _line(paragraph: Any, text: str, size: float, colour: RGBColor, *, bold: bool = False) -> None:
    run = paragraph.add_run()
    run.text = text
    run.font.size, run.font.bold, run.font.color.rgb = Pt(size), bold, colour
    paragraph.alignment = PP_ALIGN.LEFT


def _lines(text: str, size: float, width: float, padding: float = PADDING[0]) -> int:
    """Estimate how many lines a text takes in a box of that many inches."""
    room = max(1, int((width - padding) * 72 / (LETTER * size)))
    lines, used = 1, 0
    for word in text.split(" "):
        if used and used + 1 + len(word) > room:
            lines, used = lines + 1, 0
        lines += max(0, len(word) - 1) // room
        used += (used > 0) + len(word)
    return lines


def _height(lines: Sequence[str], size: float, width: float) -> float:
    """Estimate the inches that paragraphs take."""
    return sum(_lines(line, size, width) * LINE + 0.5 for line in lines) * size / 72 + PADDING[1]


def _note(slide: Any, text: str) -> float:
    """Write a note at the foot; return the inches it takes."""
    size = 11 if _lines(text, 11, WIDTH - 2 * MARGIN) < 3 else 9
    height = _height([text], size, WIDTH - 2 * MARGIN)
    box = slide.shapes.add_textbox(0, 0, 0, 0)
    _place(box, HEIGHT - 0.2 - height, height)
    box.text_frame.word_wrap = True
    _line(box.text_frame.paragraphs[0], text, size, GREY)
    return height


def _image(slide: Any, png: bytes, box: tuple[float, float, float, float], text: str) -> float:
    """Put a picture into a box (left, top, width, height), as large as it fits; return its height."""
    left, top, width, height = box
    with Image.open(io.BytesIO(png)) as image:
        share = image.width / image.height
    fitting = min(width, height * share)
    place = Inches(left + (width - fitting) / 2), Inches(top)
    shape = slide.shapes.add_picture(io.BytesIO(png), *place, width=Inches(fitting))
    shape._element.nvPicPr.cNvPr.set("descr", text)  # python-pptx has no name for the alternative text
    return fitting / share


def _parts(heading: str, number: int, of: int) -> str:
    return f"{heading} ({number} of {of})" if of > 1 else heading


# -- kinds of slides ---------------------------------------------------------------------------------------------------


def _pages(deck: Any, heading: str, lines: Sequence[str], most: int = 0) -> None:
    """Write lines on as few slides as hold them, as large as they fit; what ``most`` slides cannot hold is counted."""
    room, sizes = ROOM - PADDING[1], range(LARGEST, LEAST - 1, -1)
    heights = {size: [_height([line], size, WIDTH - 2 * MARGIN) - PADDING[1] for line in lines] for size in sizes}
    if most and len(_shared_out(heights[LEAST], room)) > most:
        fitting = (n for n in range(len(lines), 0, -1) if len(_shared_out(heights[LEAST][:n], room)) <= most)
        shown = next(fitting) - 1
        return _pages(deck, heading, [*lines[:shown], f"{len(lines) - shown} more are in the report."])
    size, parts = _largest([(size, _shared_out(heights[size], room)) for size in sizes])
    pages = [[lines[row] for row in part] for part in parts]
    for number, page in enumerate(pages, 1):
        _fill(_slide(deck, _parts(heading, number, len(pages)), TITLE_AND_TEXT), page, size, INK)


def _shared_out(heights: Sequence[float], room: float) -> list[list[int]]:
    """Share rows out, as many to each of as few slides as hold them: no slide has a single row left over."""
    slides = 1
    while True:
        parts = [[int(row) for row in part] for part in np.array_split(np.arange(len(heights)), slides)]
        if all(len(part) < 2 or sum(heights[row] for row in part) <= room for part in parts):
            return parts
        slides += 1


def _largest(shared: Sequence[tuple[int, list[list[int]]]]) -> tuple[int, list[list[int]]]:
    """Return the first of several sizes, from large to small, that needs no more slides than the last."""
    return next((size, parts) for size, parts in shared if len(parts) == len(shared[-1][1]))


def _fill(slide: Any, lines: Sequence[str], size: float, colour: RGBColor) -> None:
    """Write into the body of a slide, where the outline finds it; a single line is no list."""
    body = slide.placeholders[1]
    _place(body, BODY, ROOM)
    for number, line in enumerate(lines):
        paragraph = body.text_frame.paragraphs[0] if number == 0 else body.text_frame.add_paragraph()
        paragraph.space_before, paragraph.space_after = Pt(0), Pt(size / 2)
        _line(paragraph, line, size, colour)
        settings = paragraph._p.get_or_add_pPr()
        settings.set("marL", "0" if len(lines) == 1 else "228600")
        settings.set("indent", "0" if len(lines) == 1 else "-228600")
        if len(lines) == 1:
            settings.insert_element_before(settings.makeelement(qn("a:buNone"), {}), "a:tabLst", "a:defRPr", "a:extLst")


def _cover(deck: Any, title: str, subtitle: str, portraits: Sequence[Portrait]) -> None:
    """Answer on the first slide: every cohort with its typical brain and its verdict, in as few rows as they fit."""
    slide, shown = _slide(deck, title, TITLE_AND_TEXT), portraits[:MOST_COHORTS]
    more = f" · {len(portraits) - len(shown)} more cohorts on the next slides" if len(portraits) > len(shown) else ""
    _fill(slide, [subtitle + more], 14, GREY)
    _place(slide.placeholders[1], BODY - 0.1, 0.45)
    rows = 1 if len(shown) <= 4 else 2 if len(shown) <= 10 else 3
    columns = max(1, -(-len(shown) // rows))
    width, height = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns, (HEIGHT - COVER - 0.3) / rows
    for size in range(20, 8, -1):
        needs = [sum(_lines(text, size, width, 0.25) for text in (p.label, p.words)) * LINE * size / 72 for p in shown]
        if max(needs, default=0) + PADDING[1] <= 0.42 * height:
            break
    for row in range(rows):
        below = max(needs[row * columns : (row + 1) * columns], default=0) + PADDING[1]
        for column, portrait in enumerate(shown[row * columns : (row + 1) * columns]):
            left, top = MARGIN + column * (width + GAP), COVER + row * height
            _card(slide, portrait, (left, top, width, height), below, size)


def _card(slide: Any, portrait: Portrait, box: tuple[float, float, float, float], below: float, size: float) -> None:
    """Put a brain into a box (left, top, width, height), its name and verdict into the inches ``below`` it."""
    left, top, width, height = box
    if portrait.png:
        _image(slide, portrait.png, (left, top, width, height - below - 0.1), portrait.text)
    words = slide.shapes.add_textbox(Inches(left), Inches(top + height - below - 0.1), Inches(width), Inches(below))
    words.text_frame.word_wrap = True
    words.text_frame.add_paragraph()
    for paragraph, text, bold in zip(
        words.text_frame.paragraphs, (portrait.label, portrait.words), (True, False), strict=True
    ):
        _line(paragraph, text, size, INK, bold=bold)
        paragraph.alignment = PP_ALIGN.CENTER


def _montage(deck: Any, brains: Sequence[Brain]) -> None:
    width, per_slide = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS, COLUMNS * ROWS
    for number, brain in enumerate(brains):
        if number % per_slide == 0:
            heading = _parts(
                "Figure 1: brains, segmentation, quality", number // per_slide + 1, -(-len(brains) // per_slide)
            )
            slide = _slide(deck, heading)
        left = MARGIN + number % COLUMNS * (width + GAP)
        top = BODY + number % per_slide // COLUMNS * ROOM / ROWS
        buffer = io.BytesIO()
        Image.fromarray(brain.tinted).save(buffer, format="PNG", optimize=True)
        text = f"{brain.caption}. Sagittal, coronal and axial middle plane, grey matter in colour."
        high = _image(slide, buffer.getvalue(), (left, top, width, ROOM / ROWS - 0.7), text)
        below = slide.shapes.add_textbox(Inches(left), Inches(top + high), Inches(width), Inches(0.6))
        below.text_frame.word_wrap = True
        _line(below.text_frame.paragraphs[0], brain.caption, 11, INK)


def _picture(slide: Any, figure: Any, name: str, note: str) -> None:
    high = ROOM - _note(slide, note)
    large = any(trace.type == "heatmap" for trace in figure.data) or len({trace.name for trace in figure.data}) > 4
    size = (12.0, 5.6) if large else (9.5, 4.2)
    png = plots.picture(figure, width=size[0], height=size[1], font=11)
    _image(slide, png, (MARGIN, BODY, WIDTH - 2 * MARGIN, high), f"{name}. {note}")


def _table_pages(deck: Any, table: Table) -> None:
    """Write a table on as few slides as hold it, each with its head, as large as it fits."""
    note_room = _height([table.note], 11, WIDTH - 2 * MARGIN) + 0.1
    # An interval, and a sign with its number, stay together on a line.
    body = [
        (first, *(re.sub(r"-(?=\d)", "−", cell.replace(", ", ",\u00a0")) for cell in cells))
        for first, *cells in table.body
    ]
    table = replace(table, rows=tuple(body))
    widths = _widths([table.headings, *table.rows])
    rows = (table.headings, *table.rows)
    tall = {size: [_row_height(row, size, widths) for row in rows] for size in range(14, 8, -1)}
    shared = [(size, _shared_out(heights[1:], ROOM - note_room - heights[0])) for size, heights in tall.items()]
    size, pages = _largest(shared)
    heights = tall[size]
    for number, page in enumerate(pages, 1):
        slide = _slide(deck, _parts(table.title, number, len(pages)))
        shown = [table.headings, *(table.rows[row] for row in page)]
        _cells(slide, shown, [heights[0], *(heights[1 + row] for row in page)], widths, size)
        _note(slide, table.note)


def _widths(rows: Sequence[Sequence[str]]) -> list[float]:
    """Share the width among the columns: to each its longest word, and of the rest by its longest text."""
    columns = list(zip(*rows, strict=True))
    words = [max(len(word) + 2 for text in column for word in text.split(" ")) for column in columns]
    texts = [min(max(map(len, column)), 3 * word) for column, word in zip(columns, words, strict=True)]
    shares = [word + 0.5 * max(0, text - word) for word, text in zip(words, texts, strict=True)]
    return [(WIDTH - 2 * MARGIN) * share / sum(shares) for share in shares]


def _row_height(row: Sequence[str], size: float, widths: Sequence[float]) -> float:
    most = max(_lines(text, size, width, 0.1) for text, width in zip(row, widths, strict=True))
    return most * LINE * size / 72 + PADDING[1]


def _cells(
    slide: Any, rows: Sequence[Sequence[str]], heights: Sequence[float], widths: Sequence[float], size: float
) -> None:
    place = (Inches(MARGIN), Inches(BODY), Inches(WIDTH - 2 * MARGIN), Inches(sum(heights)))
    cells = slide.shapes.add_table(len(rows), len(widths), *place).table
    for j, width in enumerate(widths):
        cells.columns[j].width = Inches(width)
    for i, row in enumerate(rows):
        cells.rows[i].height = Inches(heights[i])
        for j, text in enumerate(row):
            frame = cells.cell(i, j).text_frame
            frame.margin_left = frame.margin_right = Inches(0.05)
            _line(frame.paragraphs[0], text, size, WHITE if i == 0 else INK, bold=i == 0)
            frame.paragraphs[0].alignment = PP_ALIGN.RIGHT if j else PP_ALIGN.LEFT
