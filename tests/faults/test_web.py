"""The web server is killed; the job that a page view started goes on."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tornado.websocket import websocket_connect

from core import jobs
from tests.cluster import ROOT, end, environment, wait_for
from tests.faults.scene import Scene


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def view(port: int, seconds: float) -> None:
    """Open the first page as a browser does, and leave after a while."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    connection = await websocket_connect(f"ws://127.0.0.1:{port}/_stcore/stream", subprotocols=["streamlit"])
    message = BackMsg()
    message.rerun_script.query_string = ""
    await connection.write_message(message.SerializeToString(), binary=True)
    await asyncio.sleep(seconds)
    connection.close()


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
        asyncio.run(view(port, 20))
        runner = scene.runner()
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
