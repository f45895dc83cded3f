"""What several nodes do together, and what becomes of connections when one of them is broken."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.e2e.cluster import STOP_SECONDS, Cluster, until
from ztun.errors import ZtunError
from ztun.lab.telnet import typed

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

SHORT_LIFE = "20s"  # of a certificate: half of it is over soon, and all of it within a test


def records(cluster: Cluster, name: str) -> Iterator[Mapping[str, Any]]:
    """The lines of a proxy's log."""
    for line in cluster.logs(name).splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def completed(cluster: Cluster, name: str, **wanted: str) -> list[Mapping[str, Any]]:
    """The access-log records of a proxy that have these values."""
    return [
        one
        for one in records(cluster, name)
        if one.get("scope") == "access"
        and all(one.get(key.replace("_", ".", 1)) == value for key, value in wanted.items())
    ]


@pytest.mark.asyncio
async def test_a_telnet_by_name_crosses_nodes_with_both_identities(cluster: Cluster) -> None:
    """A pod on node-a, which knows nothing of the mesh, types what the examples type."""
    if shutil.which("docker") is None:
        pytest.skip("the command docker is not installed")
    target = "echo-b.default.svc.cluster.local"
    container = cluster.container("node-a").id
    assert container is not None
    command = [
        "docker",
        "exec",
        "-i",
        container,
        "ip",
        "netns",
        "exec",
        "client-a",
        "telnet",
        target,
        "19000",
    ]
    async with asyncio.timeout(60), typed(command) as conversation:
        assert await conversation.ask("test") == "from-b test"
    identity = "spiffe://cluster.local/ns/default/sa/default"
    wanted = {"src_workload": "client-a", "src_identity": identity, "dst_identity": identity}
    for proxy, direction in (("proxy-a", "outbound"), ("proxy-b", "inbound")):
        until(
            lambda proxy=proxy, direction=direction: bool(  # type: ignore[misc]
                completed(cluster, proxy, direction=direction, dst_workload="echo-b", **wanted)
            ),
            f"logged by {proxy}",
        )


def test_a_short_partition_costs_no_connection(cluster: Cluster) -> None:
    """Shorter than the 20 s that a tunnel waits for the answer to a PING: it goes on where it stopped."""
    with cluster.call("client-a", "echo-b") as across:
        assert across.ask("before") == "from-b before"
        cluster.disconnect("node-b")
        try:
            across.say("kept")
        finally:
            cluster.connect("node-b")
        assert across.hear() == "from-b kept"


def test_a_long_partition_ends_what_crosses_it_and_nothing_else(cluster: Cluster) -> None:
    """Either side gives the tunnel up, with the reason; traffic within the nodes goes on; once it is healed new tunnels
    are made as if nothing had been."""
    with cluster.call("client-a", "echo-b") as across, cluster.call("client-a", "echo-a") as near:
        assert across.ask("before") == "from-b before"
        assert near.ask("before") == "from-a before"
        cluster.disconnect("node-b")
        try:
            assert cluster.try_to_call("client-a", "echo-a") == "from-a test"
            assert cluster.try_to_call("client-b", "echo-b") == "from-b test"
            assert across.hear() == ""
            assert cluster.try_to_call("client-a", "echo-b") == ""
            assert near.ask("during") == "from-a during"
        finally:
            cluster.connect("node-b")
        until(lambda: cluster.try_to_call("client-a", "echo-b") == "from-b test", "healed")
        until(lambda: cluster.try_to_call("client-b", "echo-a") == "from-a test", "healed the other way")
    refused = [one["error"] for one in completed(cluster, "proxy-a", direction="outbound") if "error" in one]
    assert any("PING" in one for one in refused), refused


def test_a_lost_node_costs_its_own_connections_only(cluster: Cluster) -> None:
    """Its pods are dead endpoints: new connections to a service that others serve too find those, by the retry before
    the first byte. The node comes back by itself, with its pods."""
    with cluster.call("client-a", "echo-a") as near, cluster.call("client-a", "echo-b") as lost:
        assert near.ask("before") == "from-a before"
        assert lost.ask("before") == "from-b before"
        for name in ("proxy-b", "node-b"):
            cluster.container(name).kill()
        try:
            answers = [cluster.try_to_call("client-a", "echo") for _ in range(8)]
            assert answers == ["from-a test"] * 8
            assert cluster.try_to_call("client-a", "echo-b") == ""
            assert near.ask("after") == "from-a after"
        finally:
            cluster.remove("proxy-b")
            cluster.container("node-b").start()
            cluster.node_proxy("node-b")
    cluster.until_healthy("proxy-b")
    until(
        lambda: cluster.try_to_call("client-a", "echo-b") == "from-b test",
        "answered by the node that is back",
    )
    cluster.until_served("client-b")


def test_a_waypoint_that_restarts_is_never_passed_by(cluster: Cluster) -> None:
    """While it is away its services are refused, though the way around it is open; afterwards all is as before."""
    until(lambda: cluster.try_to_call("client-a", "guided") == "from-b test", "guided by the waypoint")
    with cluster.call("client-a", "guided") as guided, cluster.call("client-a", "echo-b") as direct:
        assert guided.ask("before") == "from-b before"
        assert direct.ask("before") == "from-b before"
        cluster.container("waypoint").stop(timeout=STOP_SECONDS)
        try:
            assert guided.hear() == ""
            assert [cluster.try_to_call("client-a", "guided") for _ in range(3)] == [""] * 3
            assert direct.ask("during") == "from-b during"
        finally:
            cluster.container("waypoint").start()
        cluster.until_healthy("waypoint")
        until(
            lambda: cluster.try_to_call("client-a", "guided") == "from-b test", "guided by the waypoint again"
        )
        assert direct.ask("after") == "from-b after"


def test_a_ca_that_is_away_for_longer_than_a_renewal_is_missed_when_certificates_end(
    cluster: Cluster,
) -> None:
    """Until they end everything goes on with the certificates there are. Then no new tunnel can be made and who needs
    one is refused, with the reason; the tunnels there are carry on. When the CA is back the proxy helps itself."""
    cluster.node("node-c")
    proxy = cluster.node_proxy("node-c", SECRET_TTL=SHORT_LIFE)
    try:
        cluster.until_healthy(proxy)
        cluster.until_served("client-c")
        with cluster.call("client-c", "echo-b") as standing:
            assert standing.ask("before") == "from-b before"
            cluster.container("ca").stop(timeout=STOP_SECONDS)
            try:
                until(lambda: "no certificate" in cluster.logs(proxy), "trying to renew in vain")
                assert cluster.try_to_call("client-c", "echo-a") == "from-a test"
                until(lambda: _state(cluster, proxy).startswith("Unavailable"), "out of certificates")
                assert (
                    cluster.try_to_call("client-c", "guided") == ""
                )  # nobody has called the waypoint from here yet
                assert cluster.try_to_call("client-c", "echo-b") == "from-b test"
                assert standing.ask("during") == "from-b during"
            finally:
                cluster.container("ca").start()
            cluster.until_healthy("ca")
            cluster.until_served("client-c")
            until(
                lambda: cluster.try_to_call("client-c", "guided") == "from-b test",
                "able to make tunnels again",
            )
            assert standing.ask("after") == "from-b after"
        refused = [one["error"] for one in completed(cluster, proxy, direction="outbound") if "error" in one]
        assert any("CA" in one for one in refused), refused
    finally:
        cluster.remove(proxy)
        cluster.remove("node-c")


def _state(cluster: Cluster, proxy: str) -> str:
    """What a proxy says of the certificate of its pod."""
    status, output = cluster.execute(proxy, "ztun", "certificates", "-o", "json")
    assert status == 0, output
    (found,) = json.loads(output)
    return str(found["state"])


def test_a_proxy_is_replaced_without_a_failed_connection(cluster: Cluster) -> None:
    """A second proxy beside the first takes over; what the first one carries goes on while it drains."""
    stop, answers = threading.Event(), []

    def call_on() -> None:
        while not stop.is_set():
            try:
                with cluster.call("client-a", "echo-b") as connection:
                    answers.append(connection.ask("test"))
            except (OSError, ZtunError) as error:
                answers.append(str(error))

    caller = threading.Thread(target=call_on)
    with cluster.call("client-a", "echo-b") as standing:
        assert standing.ask("before") == "from-b before"
        caller.start()
        try:
            successor = cluster.node_proxy("node-a", beside=True)
            cluster.until_healthy(successor)
            before = len(answers)
            until(lambda: len(answers) > before + 20, "calling on with both")
            cluster.container("proxy-a").kill("SIGTERM")
            assert standing.ask("draining") == "from-b draining"
            until(lambda: _ended(cluster, "proxy-a"), "ended after its drain")
            before = len(answers)
            until(lambda: len(answers) > before + 20, "calling on with the second")
        finally:
            stop.set()
            caller.join()
    assert set(answers) == {"from-b test"}, answers
    for name in ("proxy-a", successor):
        cluster.remove(name)
    cluster.node_proxy("node-a")
    cluster.until_healthy("proxy-a")


def _ended(cluster: Cluster, proxy: str) -> bool:
    container = cluster.container(proxy)
    container.reload()
    return bool(container.status == "exited")
