"""Hosts that are joined by a network on this machine: each has its own addresses and name, and a cable that comes out.

They see the same files, or some of them through the network alone. Needs root (network namespaces of Linux).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import Cluster, end, wait_for

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
        self.server: subprocess.Popen[bytes] | None = None
        self.mounts: list[str] = []  # commands that every host but the server's gives
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
        steps = " && ".join(['hostname "$0"', *self.mounts, 'exec "$@"'])
        spaces = ["--uts", *(["--mount"] if self.mounts else [])]
        return ["nsenter", f"--net=/run/netns/{self.space(name)}", "unshare", *spaces, "sh", "-c", steps, name]

    def serve(self, name: str, places: Sequence[Path], keys: Path) -> None:
        """Let one host hold some folders; the others see them from now on through ssh, each with caches of its own."""
        if not shutil.which("sshfs") or not (sshd := shutil.which("sshd", path="/usr/sbin:/usr/bin")):
            raise NotHere("folders are served by sshd and mounted by sshfs, which are not installed")
        keys.mkdir(parents=True)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / key)], check=True)
        facts = {"HostKey": keys / "host", "AuthorizedKeysFile": keys / "user.pub", "PidFile": "none"}
        facts |= {"StrictModes": "no", "PermitRootLogin": "yes", "Subsystem": "sftp internal-sftp"}
        (keys / "sshd_config").write_text("".join(f"{fact} {value}\n" for fact, value in facts.items()))
        Path("/run/sshd").mkdir(exist_ok=True)
        with (keys / "log.txt").open("wb") as log:
            place = [*self.on(name), sshd, "-D", "-e", "-f", str(keys / "sshd_config")]
            self.server = subprocess.Popen(place, stdout=log, stderr=log)
        wait_for(lambda: b"listening" in (keys / "log.txt").read_bytes())
        trust = f"IdentityFile={keys / 'user'},StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null"
        address = self.addresses[name]
        self.mounts = [f"sshfs -o {trust} root@{address}:{place} {place} 2>/dev/null" for place in places]

    def cut(self, name: str) -> None:
        """Pull the cable of a host: packets are lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        _ip("-n", self.switch, "link", "set", f"to-{name}", "up")

    def close(self) -> None:
        """Remove the network; its processes have ended, and the mounts end with their server."""
        if self.server:
            end(self.server)
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
