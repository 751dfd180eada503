"""Segmentation by a program outside this process: several volumes a call, one call at a time on a host."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from filelock import FileLock

from core import segmentation
from core.errors import CacheCorrupt, SynthScopeError
from core.pools import Context, Outcome
from core.settings import Settings
from core.store import Store
from core.volume import Volume
from core.workflows.tasks import Source, segmentation_key


def segment_in_batches(context: Context, engine: str, sources: Sequence[Source], title: str) -> list[Outcome]:
    """Segment what is not stored yet, batch by batch; return one outcome a source."""
    settings = context.settings
    todo = [source for source in sources if segmented(settings, source, engine) is None]
    errors: dict[str, str] = {}
    if todo:
        segmentation.build_batch(engine, program_of(settings))  # a missing program is said once, before any work
        size = segmentation.BATCH
        batches = [tuple(todo[start : start + size]) for start in range(0, len(todo), size)]
        arguments, sizes = [(settings, batch, engine) for batch in batches], [len(batch) for batch in batches]
        outcomes = context.map(f"segmenting {title}", segment_batch, arguments, sizes, network=True)
        for batch, outcome in zip(batches, outcomes, strict=True):
            lost = dict.fromkeys((s.case_id for s in batch), outcome.error) if outcome.error else outcome.value
            errors |= lost
            for error in lost.values() if not outcome.error else ():
                context.log(error)
    rows = {source.case_id: segmented(settings, source, engine) for source in sources}
    vanished = "its result was stored and is gone. Run again."
    return [
        Outcome(error=errors[case]) if case in errors else Outcome(row) if row else Outcome(error=vanished)
        for case, row in rows.items()
    ]


def program_of(settings: Settings) -> segmentation.Program:
    """Return the outside segmenter of these settings, with the threads of all workers: it runs alone."""
    workers = 1 if settings.scheduler else max(1, settings.workers)
    return segmentation.Program(settings.synthseg, settings.threads * workers, settings.device)


def segmented(settings: Settings, source: Source, engine: str) -> dict[str, Any] | None:
    """Return the stored table row of a volume, None when there is none or another version of a program made it."""
    store = Store(settings.workspace)
    key = segmentation_key(source, engine)
    try:
        row: dict[str, Any] = store.get("json", key)
    except (KeyError, CacheCorrupt):
        return None
    version = segmentation.program_version(engine, program_of(settings))
    stale = bool(version) and row.get("program") != version
    return None if stale or not store.has("labels", key) else row


def segment_batch(settings: Settings, sources: Sequence[Source], engine: str) -> dict[str, str]:
    """Segment volumes with one call of an outside program; each is stored as `segment` stores it.

    Returns
    -------
    dict
        Error in words by case, of those that failed.

    Raises
    ------
    JobFailed, MissingAsset
        Nothing can be segmented on this machine.
    """
    store = Store(settings.workspace)
    place = f"program-{socket.gethostname()}"
    errors: dict[str, str] = {}
    # One at a time on a host: it uses all threads, and two might not fit into memory.
    with FileLock(store.folder("locks") / f"{place}.lock"):
        folder = store.folder("scratch", place)
        segmentation.clear_scratch(folder)
        todo = [source for source in sources if segmented(settings, source, engine) is None]
        loaded: list[tuple[Source, Volume]] = []
        for source in todo:
            try:
                loaded.append((source, replace(source.load(), case_id=source.case_id)))
            except SynthScopeError as error:
                errors[source.case_id] = str(error)
        program = program_of(settings)
        version = segmentation.program_version(engine, program)
        results = segmentation.build_batch(engine, program)([volume for _, volume in loaded], folder)
        for (source, _), result in zip(loaded, results, strict=True):
            if isinstance(result, SynthScopeError):
                errors[source.case_id] = str(result)
                continue
            key = segmentation_key(source, engine)
            provenance = {"engine": engine, "program": version, "source": asdict(source)}
            row = {"volumes": dict(result.volumes), "qc": dict(result.qc), "program": version}
            store.put("labels", key, result.labels)
            store.put("json", key, row, provenance)
        segmentation.clear_scratch(folder)
    return errors
