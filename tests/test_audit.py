import json
import multiprocessing
from pathlib import Path

import pytest

from core import audit
from core.settings import Settings

ODD = ["ann@lab.org\n{}", 'bob"@lab.org', "\u2028\u2029\x85\x00\r", "名前@例え.jp", "\udcff", "", '","who":"root']


@pytest.mark.parametrize("who", ODD)
def test_whoever_acts_the_record_is_one_line_of_ascii(settings, who):
    audit.record(settings, "before", "look", {})
    audit.record(settings, who, "start a job", {"title": who, "path": Path("a")})
    lines = audit.audit_file(settings).read_bytes().decode("ascii").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["who"] == who
    newest = audit.latest(settings, 1)[0]
    assert (newest["who"], newest["title"], newest["path"]) == (who, who, "a")


def test_the_newest_come_first_and_no_more_than_asked(settings):
    assert audit.latest(settings, 3) == []
    for index in range(5):
        audit.record(settings, "ann", "look", {"index": index})
    assert [found["index"] for found in audit.latest(settings, 3)] == [4, 3, 2]


def test_a_line_cut_by_a_crash_spoils_no_other(settings):
    audit.record(settings, "ann", "look", {"index": 0})
    with audit.audit_file(settings).open("ab") as file:
        file.write(b'{"when": "2026')
    audit.record(settings, "ann", "look", {"index": 1})
    assert [found["index"] for found in audit.latest(settings, 9)] == [1, 0]


def write(workspace, process):
    for index in range(40):
        audit.record(Settings(workspace=workspace), f"p{process}", "look", {"index": index, "fill": "x" * 5000})


def test_processes_write_at_once_and_lose_nothing(settings):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(settings.workspace, process)) for process in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    records = [json.loads(line) for line in audit.audit_file(settings).read_text(encoding="utf-8").splitlines()]
    for process in range(4):
        assert [r["index"] for r in records if r["who"] == f"p{process}"] == list(range(40))
