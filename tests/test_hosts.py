"""The hosts that faults of a network are tried on."""

import subprocess

import pytest

from tests.hosts import Network, NotHere


@pytest.fixture
def network():
    try:
        network = Network(("one", "two"))
    except NotHere as reason:
        pytest.skip(str(reason))
    yield network
    network.close()


def reaches(network: Network) -> bool:
    """Tell whether a packet of host two comes back from host one, where nobody listens."""
    probe = f"timeout 2 bash -c 'exec 3<>/dev/tcp/{network.addresses['one']}/7'"
    found = subprocess.run([*network.on("two"), "bash", "-c", probe], capture_output=True, text=True)
    return "refused" in found.stderr


def test_hosts_have_their_own_names_and_reach_each_other_unless_the_cable_is_out(network):
    names = [subprocess.check_output([*network.on(name), "hostname"], text=True).strip() for name in network.names]
    assert names == ["one", "two"]
    assert reaches(network)
    network.cut("one")
    assert not reaches(network)
    network.mend("one")
    assert reaches(network)
