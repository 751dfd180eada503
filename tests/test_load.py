"""A few people at once: no error, and memory that does not grow without end. Times are measured by benchmarks/load.py."""

import pytest

from benchmarks import load
from tests.test_server_browser import a_study

pytestmark = [pytest.mark.slow]


def test_a_few_sessions_meet_no_error_and_memory_stays(tmp_path, write_brains, monkeypatch):
    settings, _ = a_study(tmp_path, write_brains)
    monkeypatch.setenv("SYNTHSCOPE_WORKSPACE", str(settings.workspace))
    monkeypatch.setenv("SYNTHSCOPE_WORKERS", "0")
    measured = load.measure(sessions=4, seconds=45, think=(0.2, 1.5))
    assert not measured.errors
    assert len(measured.answered) > 5 and len({page for page, _ in measured.opened}) > 3
    warm = [mib for seconds, mib in measured.memory if seconds > 25]
    assert max(warm) - min(warm) < 300
