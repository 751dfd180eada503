"""Blind reading sessions: their plan, and ratings in SQLite that a reload, a crash or a second tab cannot lose."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from core.errors import InputError
from core.settings import Settings
from core.study import Study

Mode = Literal["rating", "forced choice"]
MODES: tuple[Mode, ...] = ("rating", "forced choice")
SCALES = ("realism", "consistency", "anatomy")  # each 1 to 5
LEAST_GAP = 3  # positions between a case and its hidden repeat
ANSWERS = {"rating": ("real", "synthetic", "skipped"), "forced choice": ("left", "right", "skipped")}
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, study TEXT, fingerprint TEXT, study_name TEXT, reader TEXT, mode TEXT, seed INTEGER,
    plan TEXT, created REAL);
CREATE TABLE IF NOT EXISTS ratings (
    session TEXT, position INTEGER, answer TEXT, realism INTEGER, consistency INTEGER, anatomy INTEGER,
    marks TEXT, note TEXT, seconds REAL, saved REAL, UNIQUE (session, position));
"""
COLUMNS = (
    "session", "reader", "study", "mode", "seed", "position", "cohort", "case", "real_case", "real_side", "repeat_of",
    "answer", "correct", *SCALES, "marks", "note", "seconds", "saved",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What is shown at one position.

    ``cohort`` and ``case`` name the volume to judge; in forced choice it is the synthetic one, and ``real_case`` lies
    on ``real_side`` of it. ``repeat_of`` is the position this one repeats, -1 for a first showing.
    """

    cohort: str
    case: str
    real_case: str = ""
    real_side: str = ""
    repeat_of: int = -1


@dataclass(frozen=True)
class Session:
    """One reader's pass over the cases of a study; ``done`` holds the positions that are saved."""

    id: str
    study: str
    study_name: str
    reader: str
    mode: Mode
    seed: int
    plan: tuple[Item, ...]
    created: float
    done: frozenset[int]

    @property
    def position(self) -> int:
        """The first position without a rating; the length of the plan when complete."""
        return next((i for i in range(len(self.plan)) if i not in self.done), len(self.plan))

    @property
    def complete(self) -> bool:
        """True when every position has a rating."""
        return self.position == len(self.plan)


@dataclass(frozen=True)
class Rating:
    """What a reader says of one position; marks are (x, y, z) in mm, a side first in forced choice."""

    answer: str
    realism: int | None = None
    consistency: int | None = None
    anatomy: int | None = None
    marks: tuple[tuple[float | str, ...], ...] = ()
    note: str = ""
    seconds: float = 0.0


# -- plan --------------------------------------------------------------------------------------------------------------


def make_plan(
    study: Study, cohorts: Sequence[str], mode: Mode, n: int, repeats: float, seed: int, reader: str
) -> tuple[Item, ...]:
    """Draw the cases of a session and their order.

    Readers with the same seed see the same cases, so that they can be compared, each in an order of their own.

    Parameters
    ----------
    study : Study
        Source of the cases; half of a rating session are real ones.
    cohorts : sequence of str
        Synthetic cohorts to draw from, equally.
    mode : {"rating", "forced choice"}
        One volume a position, or a real beside a synthetic one.
    n : int
        Different cases (pairs) to show.
    repeats : float
        Share of ``n`` that is shown a second time, 0 to 1.
    seed : int
        Of the draw.
    reader : str
        Changes the order alone.

    Raises
    ------
    InputError
        No cohort, too few cases, a share outside 0 to 1.
    """
    if not cohorts or n < 2 or not 0 <= repeats <= 1:
        what = f"expected a cohort, at least 2 cases and repeats from 0 to 1; found {len(cohorts)}, {n}, {repeats:g}."
        raise InputError(what, "reading session", "Correct the form.")
    rng = np.random.default_rng(seed)
    real = _shuffled([case.case_id for case in study.real.cases], rng)
    wanted = n if mode == "forced choice" else n - n // 2
    fakes = _draw_equally({c: _shuffled([k.case_id for k in study.cohort(c).cases], rng) for c in cohorts}, wanted)
    reals = [real[i % len(real)] for i in range(n)] if mode == "forced choice" and real else real[: n // 2]
    if len(fakes) < wanted or len(reals) < (n if mode == "forced choice" else n // 2):
        what = f"{n} cases need {wanted} synthetic and {n // 2} real ones; there are {len(fakes)} and {len(real)}."
        raise InputError(what, "reading session", "Choose fewer cases or more cohorts.")
    if mode == "forced choice":
        items = [Item(c, k, r) for (c, k), r in zip(fakes, reals, strict=True)]
    else:
        items = [Item(c, k) for c, k in fakes] + [Item(study.real.name, k) for k in reals]
    own = int.from_bytes(hashlib.sha256(reader.encode()).digest()[:8], "big")
    return _arrange(items, round(repeats * n), mode, np.random.default_rng([seed, own]))


def _shuffled(values: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [values[i] for i in rng.permutation(len(values))]


def _draw_equally(pools: Mapping[str, list[str]], n: int) -> list[tuple[str, str]]:
    """Take one case of each cohort in turn until there are n, or none is left."""
    most = max(map(len, pools.values()))
    turns = [(name, cases[i]) for i in range(most) for name, cases in pools.items() if i < len(cases)]
    return turns[:n]


def _arrange(items: Sequence[Item], repeats: int, mode: Mode, rng: np.random.Generator) -> tuple[Item, ...]:
    """Shuffle; put the repeats of early items at random places at least `LEAST_GAP` later, as far as there is room."""
    order: list[tuple[int, bool]] = [(int(i), False) for i in rng.permutation(len(items))]
    for chosen in [index for index, _ in order[:repeats]]:
        first = order.index((chosen, False))
        low = min(first + LEAST_GAP, len(order))
        order.insert(int(rng.integers(low, len(order) + 1)), (chosen, True))
    plan = []
    for index, again in order:
        item = items[index]
        side = ("left", "right")[int(rng.integers(2))] if mode == "forced choice" else ""
        plan.append(Item(item.cohort, item.case, item.real_case, side, order.index((index, False)) if again else -1))
    return tuple(plan)


# -- sessions ----------------------------------------------------------------------------------------------------------


@contextmanager
def _database(settings: Settings) -> Iterator[sqlite3.Connection]:
    settings.workspace.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(settings.workspace / "readings.sqlite", isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a rating that was acknowledged survives a power cut
        connection.executescript(_SCHEMA)
        yield connection
    finally:
        connection.close()


def fingerprint(study: Study) -> str:
    """Hash the names of a study's cohorts and cases: a study keeps its readings when its name or folder changes."""
    cases = [(cohort.name, [case.case_id for case in cohort.cases]) for cohort in study.cohorts]
    return hashlib.sha256(json.dumps(cases).encode()).hexdigest()


def reader_name(name: str, key: str = "") -> str:
    """Return how a reader is called: the name, and the key that tells two of one name apart.

    Raises
    ------
    InputError
        Without a name.
    """
    name, key = " ".join(name.split()), " ".join(key.split())
    if not name:
        raise InputError("a reader needs a name.", "name", "Any name or initials will do.")
    return f"{name} ({key})" if key else name


def start_session(settings: Settings, study: Study, reader: str, mode: Mode, plan: Sequence[Item], seed: int) -> str:
    """Store a new session; return its id."""
    session = uuid.uuid4().hex[:12]
    values = (session, str(study.path.resolve()), fingerprint(study), study.name, reader, mode, seed)
    text = json.dumps([asdict(item) for item in plan])
    with _database(settings) as db:
        db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, text, time.time()))
    return session


def list_sessions(settings: Settings, study: Study) -> list[Session]:
    """Return the sessions of a study, newest first; found by its path or, when it was moved, by its cases."""
    with _database(settings) as db:
        rows = db.execute(
            "SELECT * FROM sessions WHERE study = ? OR fingerprint = ? ORDER BY created DESC",
            (str(study.path.resolve()), fingerprint(study)),
        ).fetchall()
        return [_session(db, row) for row in rows]


def read_session(settings: Settings, session: str) -> Session:
    """Return one session.

    Raises
    ------
    InputError
        When there is none.
    """
    with _database(settings) as db:
        row = db.execute("SELECT * FROM sessions WHERE id = ?", (session,)).fetchone()
        if row is None:
            raise InputError("there is no such reading session.", session, "Start one, or continue under your name.")
        return _session(db, row)


def _session(db: sqlite3.Connection, row: sqlite3.Row) -> Session:
    done = db.execute("SELECT position FROM ratings WHERE session = ?", (row["id"],)).fetchall()
    plan = tuple(Item(**item) for item in json.loads(row["plan"]))
    names = ("id", "study", "study_name", "reader", "mode", "seed", "created")
    return Session(**{name: row[name] for name in names}, plan=plan, done=frozenset(r["position"] for r in done))


def save_rating(settings: Settings, session: Session, position: int, rating: Rating) -> None:
    """Store a rating; it is on disk when this returns.

    Raises
    ------
    InputError
        A rating that is incomplete or out of range, a position outside the plan, or one that has a rating already
        (another tab saved it); the stored rating stays as it is.
    """
    _check(session, position, rating)
    values = (session.id, position, rating.answer, rating.realism, rating.consistency, rating.anatomy)
    values_after = (json.dumps(rating.marks), rating.note, rating.seconds, time.time())
    try:
        with _database(settings) as db:
            db.execute("INSERT INTO ratings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, *values_after))
    except sqlite3.IntegrityError as error:
        what = "this case has a rating already, saved from another tab or window; that rating was kept."
        raise InputError(what, f"case {position + 1}", "Go on here with the next case, and close the other tab.") from (
            error
        )


def _check(session: Session, position: int, rating: Rating) -> None:
    where = f"case {position + 1}"
    if not 0 <= position < len(session.plan):
        raise InputError(f"the session has {len(session.plan)} cases.", where, "Reload the page.")
    if rating.answer not in ANSWERS[session.mode]:
        raise InputError(f"unknown answer {rating.answer!r}.", where, f"Choose {', '.join(ANSWERS[session.mode])}.")
    if session.mode == "forced choice" or rating.answer == "skipped":
        return
    wrong = [name for name in SCALES if getattr(rating, name) not in (1, 2, 3, 4, 5)]
    if wrong:
        raise InputError(f"{', '.join(wrong)} needs a value from 1 to 5.", where, "Complete the rating.")


def read_ratings(settings: Settings, sessions: Sequence[Session], real: str) -> pd.DataFrame:
    """Return the ratings of sessions, one row each, in the form of readings.csv (docs/columns.md).

    Parameters
    ----------
    settings : Settings
        Names the workspace.
    sessions : sequence of Session
        Wanted.
    real : str
        Name of the real cohort.
    """
    rows = []
    with _database(settings) as db:
        for session in sessions:
            found = db.execute("SELECT * FROM ratings WHERE session = ? ORDER BY position", (session.id,)).fetchall()
            rows += [_row(session, row, real) for row in found if row["position"] < len(session.plan)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in (*SCALES, "seconds"):
        table[name] = pd.to_numeric(table[name])
    return table


def _row(session: Session, row: sqlite3.Row, real: str) -> dict[str, Any]:
    item = session.plan[row["position"]]
    truth = item.real_side if session.mode == "forced choice" else "real" if item.cohort == real else "synthetic"
    values = {name: row[name] for name in ("position", "answer", *SCALES, "marks", "note", "seconds")}
    values |= {"session": session.id, "reader": session.reader, "study": session.study_name}
    values |= {"mode": session.mode, "seed": session.seed, **asdict(item)}
    values["correct"] = None if row["answer"] == "skipped" else row["answer"] == truth
    values["saved"] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(row["saved"]))
    return values
