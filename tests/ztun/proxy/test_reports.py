"""What is told of one connection afterwards: metrics and access log, on both sides of the tunnel."""

from __future__ import annotations

import io
import re

import pytest

from tests.ztun.proxy.applications import Wires
from tests.ztun.proxy.journal import samples
from tests.ztun.proxy.mesh import APP_PORT, Mesh, Node, only
from ztun.mesh.model import Locality
from ztun.telemetry.access_log import AccessLog, ConnectionReport
from ztun.telemetry.writer import LineWriter

pytestmark = pytest.mark.net

VIP = "10.10.0.1"
HELLO = b"hello world"
COMMON = {
    "source_workload": "client",
    "source_canonical_service": "client",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "default",
    "source_principal": "spiffe://cluster.local/ns/default/sa/client",
    "source_app": "client",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
    "destination_service": "echo.default.svc.cluster.local",
    "destination_service_namespace": "default",
    "destination_service_name": "echo",
    "destination_workload": "server",
    "destination_canonical_service": "server",
    "destination_canonical_revision": "v1",
    "destination_workload_namespace": "default",
    "destination_principal": "spiffe://cluster.local/ns/default/sa/server",
    "destination_app": "server",
    "destination_version": "v1",
    "destination_cluster": "Kubernetes",
    "request_protocol": "tcp",
    "response_flags": "-",
    "connection_security_policy": "mutual_tls",
    "source_region": "eu",
    "source_zone": "eu-1",
    "destination_region": "unknown",
    "destination_zone": "unknown",
}


async def exchange(mesh: Mesh, wires: Wires) -> tuple[ConnectionReport, ConnectionReport]:
    """11 bytes up, 22 down, over a service; gives the records of the client's and of the server's side."""
    mesh.service("echo", {80: APP_PORT}, VIP)
    client_pod = mesh.pod("client", "near", locality=Locality("eu", "eu-1"))
    server_pod = mesh.pod("server", "far", services={"echo": {80: APP_PORT}})
    application = await wires.application(server_pod.addresses[0], APP_PORT)
    await mesh.start()
    client = await wires.dial(await mesh.enter(client_pod, VIP, 80))
    server = await application.accept()
    await client.send(HELLO)
    await server.send(await server.receive(11) * 2)
    assert await client.receive(22) == HELLO * 2
    client.end()
    assert await server.receive_all() == b""
    server.end()
    return await mesh.nodes["near"].journal.end(), await mesh.nodes["far"].journal.end()


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "reporter"), [("near", "source"), ("far", "destination")])
async def test_metrics_of_one_connection(mesh: Mesh, wires: Wires, name: str, reporter: str) -> None:
    await exchange(mesh, wires)
    node = mesh.nodes[name]
    labels = {"reporter": reporter, **COMMON}
    for metric, value in (
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 11),
        ("istio_tcp_sent_bytes_total", 22),
    ):
        assert samples(node.metrics, metric) == [(labels, value)]
    assert samples(node.metrics, "istio_tcp_connections_failed_total") == []
    (line,) = [
        line
        for line in node.metrics.render().decode().splitlines()
        if line.startswith("istio_tcp_received_bytes_total")
    ]
    assert re.findall(r'(\w+)="', line) == list(labels)


@pytest.mark.asyncio
async def test_sockets_are_counted_while_they_are_open(mesh: Mesh, wires: Wires) -> None:
    await exchange(mesh, wires)
    far = mesh.nodes["far"]
    assert far.sample("istio_tcp_sockets_open", reporter="destination") == 1  # the tunnel stays
    assert far.sample("ztun_tunnels_open", role="server") == 1
    assert mesh.nodes["near"].sample("ztun_handshake_seconds_count", role="client") == 1


@pytest.mark.asyncio
async def test_opened_is_counted_while_the_connection_lasts(mesh: Mesh, wires: Wires) -> None:
    client_pod, server_pod = mesh.pod("client", "near"), mesh.pod("server", "far")
    application = await wires.application(server_pod.addresses[0], APP_PORT)
    await mesh.start()
    client = await wires.dial(await mesh.enter(client_pod, server_pod.addresses[0]))
    server = await application.accept()
    await client.send(HELLO)
    assert await server.receive(11) == HELLO
    for node in mesh.nodes.values():
        assert counts(node) == (1, 0, 0)
        node.look_at_connections(1)  # byte counts of connections that last are published, too
        assert counts(node) == (1, 0, 11)
    client.reset()
    assert await server.ending() == "reset"
    for node in mesh.nodes.values():
        await node.journal.end()
        assert counts(node) == (1, 1, 11)
        flags = {labels["response_flags"] for labels, _ in samples(node.metrics, FAILED)}
        assert flags == {"CONNECT"}


FAILED = "istio_tcp_connections_failed_total"


def counts(node: Node) -> tuple[float, float, float]:
    return (
        node.sample("istio_tcp_connections_opened_total"),
        node.sample("istio_tcp_connections_closed_total"),
        node.sample("istio_tcp_received_bytes_total"),
    )


def line_of(report: ConnectionReport) -> str:
    """The line as the log has it, without its time; ports and times are replaced by N."""
    sink = io.BytesIO()
    writer = LineWriter(sink)
    writer.start()
    AccessLog(writer).complete(report)
    writer.close()
    text = sink.getvalue().decode().removesuffix("\n").partition("\t")[2]
    return re.sub(r'"\d+ms"', '"Nms"', re.sub(r"(src\.addr=[\d.]+):\d+", r"\1:N", text))


@pytest.mark.asyncio
async def test_access_log_of_one_connection(mesh: Mesh, wires: Wires) -> None:
    near, far = await exchange(mesh, wires)
    client, server = (mesh.workloads[name].addresses[0] for name in ("client", "server"))
    ends = (
        f"src.addr={client}:N "
        'src.workload="client" src.namespace="default" '
        'src.identity="spiffe://cluster.local/ns/default/sa/client" src.cluster="Kubernetes" '
        f"dst.addr={server}:15008 dst.hbone_addr={server}:{APP_PORT} "
        'dst.service="echo.default.svc.cluster.local" dst.workload="server" dst.namespace="default" '
        'dst.identity="spiffe://cluster.local/ns/default/sa/server" dst.cluster="Kubernetes" '
    )
    head = "info\taccess\tconnection complete\t"
    assert line_of(near) == (f'{head}{ends}direction="outbound" bytes_sent=11 bytes_recv=22 duration="Nms"')
    assert line_of(far) == f'{head}{ends}direction="inbound" bytes_sent=22 bytes_recv=11 duration="Nms"'


@pytest.mark.asyncio
async def test_open_record_comes_first(mesh: Mesh, wires: Wires) -> None:
    near, far = await exchange(mesh, wires)
    for node, end in ((mesh.nodes["near"], near), (mesh.nodes["far"], far)):
        opened = only(node.journal.opens)
        assert opened.source_addr == end.source_addr
        assert (opened.error, opened.bytes_sent, opened.bytes_recv) == (None, 0, 0)


@pytest.mark.asyncio
async def test_passthrough_to_a_pod_without_tunnel(mesh: Mesh, wires: Wires) -> None:
    client_pod = mesh.pod("client", "near")
    plain = mesh.pod("plain", "elsewhere", tunnel=False)
    application = await wires.application(plain.addresses[0], APP_PORT)
    await mesh.start("near")
    client = await wires.dial(await mesh.enter(client_pod, plain.addresses[0]))
    server = await application.accept()
    assert server.peer[0] == client_pod.addresses[0]
    client.end()
    await server.receive_all()
    server.end()
    report = await mesh.nodes["near"].journal.end()
    assert (report.hbone_addr, report.source_identity, report.destination_identity) == ("", None, None)
    assert report.destination is plain
    ((labels, _),) = samples(mesh.nodes["near"].metrics, "istio_tcp_connections_closed_total")
    assert (labels["connection_security_policy"], labels["destination_workload"]) == ("unknown", "plain")
    assert (labels["source_principal"], labels["destination_principal"]) == ("unknown", "unknown")


@pytest.mark.asyncio
async def test_passthrough_to_an_address_outside_the_mesh(mesh: Mesh, wires: Wires) -> None:
    client_pod = mesh.pod("client", "near")
    stranger = mesh.addresses.take()
    application = await wires.echo(stranger, APP_PORT)
    await mesh.start()
    client = await wires.dial(await mesh.enter(client_pod, stranger))
    await client.send(HELLO)
    client.end()
    assert await client.receive_all() == HELLO
    report = await mesh.nodes["near"].journal.end()
    assert (report.destination, report.destination_addr) == (None, f"{stranger}:{APP_PORT}")
    assert application.accepted == 1


@pytest.mark.asyncio
async def test_connection_to_an_unknown_name_has_a_line_and_no_metrics(mesh: Mesh, wires: Wires) -> None:
    client_pod = mesh.pod("client", "near")
    await mesh.start()
    client = await wires.dial(await mesh.enter(client_pod, "nowhere.example.org"))
    assert await client.ending() == "reset"
    near = mesh.nodes["near"]
    report = await near.journal.refusal()
    assert report.error is not None
    assert report.error.code == "unknown_hostname"
    assert samples(near.metrics, "istio_tcp_connections_opened_total") == []
    assert near.sample("ztun_connection_failures_total", stage="route", code="unknown_hostname") == 1
