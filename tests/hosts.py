"""Hosts that are joined by a network on this machine: each has its own addresses and name, and a cable that comes out.

They see the same files, as hosts that share storage do. Needs root (network namespaces of Linux).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import Cluster, wait_for

NET = "10.213.77"


class NotHere(Exception):
    """What this machine, or this account, does not allow to try."""


class Network:
    """A switch and hosts on it.

    Parameters
    ----------
    names : sequence of str
        Host names.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if os.geteuid() or not shutil.which("ip"):
            raise NotHere("only root can make networks, with the program ip")
        self.id = uuid.uuid4().hex[:6]
        self.names = tuple(names)
        self.addresses = {name: f"{NET}.{index + 1}" for index, name in enumerate(names)}
        self.switch = f"{self.id}-switch"
        try:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "br0", "up")
            for name in names:
                self._plug_in(name)
        except NotHere:
            self.close()
            raise

    def _plug_in(self, name: str) -> None:
        host = self.space(name)
        _ip("netns", "add", host)
        port = ("-n", self.switch, "link", "add", f"to-{name}", "type", "veth")
        _ip(*port, "peer", "name", "eth0", "netns", host)
        _ip("-n", self.switch, "link", "set", f"to-{name}", "master", "br0", "up")
        _ip("-n", host, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host, "link", "set", device, "up")

    def space(self, name: str) -> str:
        """Return the network namespace of a host."""
        return f"{self.id}-{name}"

    def on(self, name: str) -> list[str]:
        """Return what to put before a command so that it runs on a host; the process is the command's own."""
        rename = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name]
        return ["nsenter", f"--net=/run/netns/{self.space(name)}", *rename]

    def cut(self, name: str) -> None:
        """Pull the cable of a host: packets are lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        _ip("-n", self.switch, "link", "set", f"to-{name}", "up")

    def close(self) -> None:
        """Remove the network; its processes have ended."""
        for name in (*self.names, "switch"):
            subprocess.run(["ip", "netns", "delete", self.space(name)], capture_output=True)


class Hosts(Cluster):
    """A scheduler on the host ``head`` and one worker on each of the others; see `Cluster`."""

    def __init__(self, folder: Path, network: Network, **settings: str) -> None:
        super().__init__(folder, **settings)
        self.network = network
        self.port = 8786  # each host has its own ports
        self.address = f"tcp://{network.addresses['head']}:{self.port}"

    def scheduler(self, **changes: str) -> subprocess.Popen[bytes]:
        """Start the scheduler on its host."""
        place = ("--host", self.network.addresses["head"], "--port", str(self.port), "--no-dashboard")
        process = self.start("distributed.cli.dask_scheduler", *place, on=self.network.on("head"), **changes)
        wait_for(self.answers)
        return process

    def answers(self) -> bool:
        """Tell whether the scheduler can be reached, as seen from its host."""
        probe = f"exec 3<>/dev/tcp/{self.network.addresses['head']}/{self.port}"
        return not subprocess.run([*self.network.on("head"), "bash", "-c", probe], capture_output=True).returncode

    def worker_on(self, name: str) -> subprocess.Popen[bytes]:
        """Start a worker with its nanny on a host."""
        place = ("--host", self.network.addresses[name], "--nthreads", "1", "--no-dashboard")
        folder = ("--local-directory", str(self.folder / name))  # what hosts do not share
        module = "distributed.cli.dask_worker"
        return self.start(module, self.address, *place, *folder, on=self.network.on(name))


def _ip(*words: str) -> None:
    made = subprocess.run(["ip", *words], capture_output=True, text=True)
    if made.returncode:
        raise NotHere(f"no network can be made here ({made.stderr.strip()})")
