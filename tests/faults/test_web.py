"""The web server is killed; the job that a page view started goes on."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tornado.websocket import websocket_connect

from core import jobs
from tests.cluster import ROOT, end, environment, wait_for
from tests.faults.scene import Scene

T = TypeVar("T")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def view(port: int, until: Callable[[], T]) -> T:
    """Open the first page as a browser does, and leave when `until` has returned."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    url = f"ws://127.0.0.1:{port}/_stcore/stream"
    connection = await websocket_connect(url, connect_timeout=120, subprotocols=["streamlit"])
    message = BackMsg()
    message.rerun_script.query_string = ""
    await connection.write_message(message.SerializeToString(), binary=True)
    found = await asyncio.to_thread(until)
    connection.close()
    return found


@pytest.mark.slow
def test_a_killed_web_server_stops_no_job(whole, tmp_path: Path, monkeypatch):
    data, expected, _ = whole
    scene = Scene(data, tmp_path, expected)
    with monkeypatch.context() as quiet:  # only the page view starts the runner
        quiet.setattr(jobs, "ensure_runner", lambda settings: None)
        jobs.cancel(scene.settings(), jobs.submit(scene.settings(), "core.workflows:demo", {}, "no demo here"))
        job = scene.submit()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)]
    env = environment(scene.workspace, SYNTHSCOPE_WORKERS="2")
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(port), 60)
        runner = asyncio.run(view(port, scene.runner))
        scene.reach(6, runner.is_running)
        server.kill()
        server.wait(20)
        wait_for(lambda: not jobs.status(scene.settings(), job).active, 180)
        record = jobs.status(scene.settings(), job)
        assert (record.state, record.attempts) == ("done", 1), record.error
        assert runner.is_running()
        scene.check()
        scene.stop_runner()
    finally:
        end(server)
