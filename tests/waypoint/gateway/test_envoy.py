"""An Envoy on either side of the gateway: as a client in front of it, and as the endpoint's proxy behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.peers import traffic
from tests.peers.application import GREETING
from tests.peers.envoy import EnvoyProcess, envoy_binary
from tests.peers.envoy_parts import PlainEntry, Terminator
from tests.peers.pattern import Tally
from tests.peers.traffic import Address, ApplicationProcess
from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.gateway.edge import SERVICE_PORT, Edge, gateway, rules, secret, server, to
from tests.waypoint.server.ground import APP_PORT

pytestmark = pytest.mark.peer

MEBIBYTE = 1024**2
SIZE = 64 * MEBIBYTE
STREAMS = 200
GATEWAY = "ingressgateway-1"
HBONE_PORT = 15008
TLS, GREETED = 8443, 19001
NAME = "shop.example.com"


@dataclass(frozen=True, slots=True)
class Ways:
    """Entries that lead through the front Envoy, the gateway and the Envoy of the endpoint."""

    edge: Edge
    plain: Address
    inside_tls: Address
    greet: Address
    records: Path

    def connect(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first CONNECT stream that the endpoint's Envoy has logged and that is wanted; waits for it."""

        def logged() -> list[dict[str, Any]]:
            text = self.records.read_text() if self.records.exists() else ""
            # the last line may be half written
            return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

        self.edge.gateway.wait_until(lambda: any(map(wanted, logged())), "known to the endpoint's proxy")
        return next(filter(wanted, logged()))


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("envoy")
    web = WebAuthority()
    with Edge(directory) as edge:
        edge.pods.remove(edge.app)
        edge.app = replace(edge.app, node="envoy")
        edge.pods.append(edge.app)
        edge.documents = documents(web.issue(NAME), web)
        edge.services[-1]["spec"]["ports"].append(
            {"name": "tcp-greet", "port": GREETED, "targetPort": APP_PORT + 1}
        )
        records = directory / "connect.json"
        backend = Terminator(
            "inbound",
            (edge.app.ip, HBONE_PORT),
            edge.authority.issue(edge.app.identity),
            {f"{edge.app.ip}:{port}": (edge.app.ip, port) for port in (APP_PORT, APP_PORT + 1)},
            expected=[edge.gateway_pods[0].identity],
            access_log=records,
        )
        application = ApplicationProcess(
            [(edge.app.ip, APP_PORT)], directory / "application.log", greet=[(edge.app.ip, APP_PORT + 1)]
        )
        edge.start(echoes=False)
        with (
            application,
            EnvoyProcess("behind", [backend], directory),
            EnvoyProcess("front", entries(edge, web, directory), directory, half_close=True) as front,
        ):
            names = ("plain", "inside-tls", "greet")
            yield Ways(edge, *(front.listener(name) for name in names), records)


def documents(shown: WebCertificate, web: WebAuthority) -> list[dict[str, Any]]:
    tls = {"mode": "MUTUAL", "credentialName": "shop"}
    app, greet = to("app", SERVICE_PORT), to("app", GREETED)
    return [
        gateway(GATEWAY, server(SERVICE_PORT), server(TLS, "TLS", NAME, tls=tls)),
        gateway("greet", server(GREETED), selects=GATEWAY),
        rules("app", [GATEWAY], tcp=[{"route": [app]}]),
        rules("greet", ["greet"], tcp=[{"route": [greet]}]),
        secret("shop", tls_crt=shown.chain, tls_key=shown.key, ca_crt=web.pem),
    ]


def entries(edge: Edge, web: WebAuthority, directory: Path) -> list[PlainEntry]:
    own = web.issue("front.example.com")
    for name, text in (("web.pem", web.pem), ("front.crt", own.chain), ("front.key", own.key)):
        (directory / name).write_text(text)

    def listen() -> Address:
        return edge.block.take(), 0

    return [
        PlainEntry("plain", listen(), edge.address(SERVICE_PORT)),
        PlainEntry("greet", listen(), edge.address(GREETED)),
        PlainEntry(
            "inside-tls",
            listen(),
            edge.address(TLS),
            NAME,
            directory / "web.pem",
            directory / "front.crt",
            directory / "front.key",
        ),
    ]


@pytest.fixture(params=["plain", "inside_tls"])
def way(request: pytest.FixtureRequest, ways: Ways) -> Address:
    address: Address = getattr(ways, request.param)
    return address


def test_bulk_is_byte_exact_both_ways(way: Address) -> None:
    assert traffic.upload(way, 1, SIZE) == str(Tally.of_pattern(1, SIZE))
    assert traffic.download(way, 2, SIZE) == str(Tally.of_pattern(2, SIZE))


def test_the_clients_end_keeps_the_answer_flowing(way: Address) -> None:
    payload = os.urandom(8 * MEBIBYTE)
    assert traffic.echo(way, payload) == payload


def test_many_connections_at_once(way: Address) -> None:
    payloads = [os.urandom(2000 + index) for index in range(STREAMS)]
    assert traffic.at_once(STREAMS, lambda index: traffic.echo(way, payloads[index])) == payloads


def test_a_server_that_speaks_first_is_heard(ways: Ways) -> None:
    with traffic.dial(ways.greet) as connection:
        assert traffic.read_exactly(connection, len(GREETING)) == GREETING
        connection.sendall(b"hello")
        assert traffic.read_exactly(connection, 5) == b"hello"


def test_what_the_endpoint_learns_of_the_client(ways: Ways) -> None:
    with traffic.dial(ways.edge.address(SERVICE_PORT)) as connection:
        ip, port = connection.getsockname()
        connection.sendall(b"echo\nhello")
        assert traffic.read_exactly(connection, 5) == b"hello"
    wanted = f'for="{ip}:{port}"'
    record = ways.connect(lambda one: str(one["forwarded"]).startswith(wanted))
    assert record["method"] == "CONNECT"
    assert record["authority"] == f"{ways.edge.app.ip}:{APP_PORT}"
    assert record["peer"] == str(ways.edge.gateway_pods[0].identity)
    assert record["forwarded"].endswith("host=app.default.svc.cluster.local")
    assert "k8s.pod.name=ingressgateway-1" in record["baggage"]
    assert record["tls"] == "TLSv1.3"
