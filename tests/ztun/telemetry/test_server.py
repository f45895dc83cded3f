from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing

import brotli
import httpx
import prometheus_client.parser
import pytest
import zstandard
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ztun.errors import ConfigError
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import build_snapshot
from ztun.telemetry.config_dump import ConfigDump
from ztun.telemetry.labels import TrafficLabels
from ztun.telemetry.levels import DEBUG, Levels
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness
from ztun.telemetry.server import MAX_CONNECTIONS, MAX_HEAD_BYTES, Address, TelemetryServers

pytestmark = pytest.mark.net

LOOPBACK: Address = ("127.0.0.1", 0)


class Proxy:
    """The servers with real parts behind them."""

    def __init__(self, **addresses: Address | None) -> None:
        self.metrics = Metrics()
        self.readiness = Readiness()
        self.levels = Levels("info")
        self.shutdown_asked = threading.Event()
        self.stuck = False
        self.snapshot = build_snapshot(
            workloads=[Workload(uid="c", name="client-1", namespace="default")], services=[], policies=[]
        )
        self.settings: dict[str, object] = {"auth_token": "do not tell", "node": "node-1"}
        self.servers = TelemetryServers(
            dump=ConfigDump(snapshot=lambda: self.snapshot, settings=lambda: self.settings),
            metrics=self.metrics,
            readiness=self.readiness,
            levels=self.levels,
            shutdown=self.shutdown_asked.set,
            tasks=self.tell,
            **{
                "admin_address": LOOPBACK,
                "metrics_address": LOOPBACK,
                "readiness_address": LOOPBACK,
                **addresses,
            },
        )

    def tell(self) -> str:
        if self.stuck:
            raise TimeoutError("the event loop did not get to answer within 2 s")
        return "1 tasks\n"

    def url(self, server: str, path: str) -> str:
        host, port = self.servers.addresses[server]
        return f"http://{host}:{port}{path}"

    def connect(self, server: str) -> socket.socket:
        return socket.create_connection(self.servers.addresses[server], timeout=30)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy()
    running.servers.start()
    yield running
    assert running.servers.stop(30)


def test_readiness_names_what_is_pending(proxy: Proxy) -> None:
    url = proxy.url("readiness", "/healthz/ready")
    state, _ = proxy.readiness.register("state manager"), proxy.readiness.register("proxy")
    answer = httpx.get(url)
    assert (answer.status_code, answer.text) == (500, "not ready, pending: proxy, state manager\n")
    state.done()
    proxy.readiness.finish("proxy")
    answer = httpx.get(url)
    assert (answer.status_code, answer.text) == (200, "ready\n")
    assert httpx.post(url).status_code == 405
    assert httpx.head(url).status_code == 405
    assert httpx.get(proxy.url("readiness", "/healthz/live")).status_code == 404


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text;charset=utf-8;version=1.0.0",
        ),
        ("text/plain", "text/plain; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/stats/prometheus"])
def test_the_content_type_follows_accept(proxy: Proxy, path: str, accept: str, content_type: str) -> None:
    answer = httpx.get(proxy.url("metrics", path), headers={"accept": accept})
    assert answer.headers["content-type"] == content_type
    for parse in (text_string_to_metric_families, prometheus_client.parser.text_string_to_metric_families):
        assert {"istio_build"} < {family.name for family in parse(answer.text)}


UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def scrape(proxy: Proxy, encodings: str) -> tuple[str, bytes]:
    """The content encoding and the body as it came; by HTTP/1.0, whose end is the end of the connection."""
    with closing(proxy.connect("metrics")) as raw:
        raw.sendall(f"GET /metrics HTTP/1.0\r\naccept-encoding: {encodings}\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: raw.recv(65536), b"")).partition(b"\r\n\r\n")
    return httpx.Headers(parse_header(line) for line in head.split(b"\r\n")[1:]).get(
        "content-encoding", ""
    ), body


def parse_header(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b": ")
    return name, value


@pytest.mark.parametrize("encoding", UNPACK)
def test_a_scrape_shows_what_the_event_loop_counted_and_compresses(proxy: Proxy, encoding: str) -> None:
    """The traffic's lines, that is: the process's own, such as its CPU time, differ from scrape to scrape."""
    series = proxy.metrics.traffic(TrafficLabels(reporter="source"))
    series.opened += 1
    series.received += 11
    plain = scrape(proxy, "identity")
    packed = scrape(proxy, encoding)
    assert (plain[0], packed[0]) == ("", encoding)
    assert len(packed[1]) < len(plain[1]) / 2
    unpacked = UNPACK[encoding](packed[1])
    assert b'istio_tcp_received_bytes_total{reporter="source"' in unpacked
    assert unpacked.endswith(b"# EOF\n")

    def traffic(body: bytes) -> list[bytes]:
        return [line for line in body.splitlines() if line.startswith(b"istio_tcp_")]

    assert traffic(unpacked) == traffic(plain[1])


def test_an_encoding_that_is_refused_is_not_used(proxy: Proxy) -> None:
    proxy.metrics.traffic(TrafficLabels(reporter="source")).opened += 1
    assert scrape(proxy, "zstd;q=0, br;q=0, gzip;q=0")[0] == ""
    assert scrape(proxy, "zstd;q=0, gzip")[0] == "gzip"


def test_the_dump_has_the_mesh_and_no_secrets(proxy: Proxy) -> None:
    answer = httpx.get(proxy.url("admin", "/config_dump"))
    assert answer.headers["content-type"] == "application/json"
    assert "do not tell" not in answer.text
    dump = answer.json()
    assert [workload["name"] for workload in dump["workloads"]] == ["client-1"]
    assert dump["config"] == {"authToken": "[redacted]", "node": "node-1"}
    assert answer.text == json.dumps(dump, indent=2)


def test_log_levels_over_http(proxy: Proxy) -> None:
    url = proxy.url("admin", "/logging")
    assert httpx.get(url).status_code == 405
    assert httpx.post(url).text == "current log level is info\n"
    assert (
        httpx.post(f"{url}?level=proxy=debug,access=off").text
        == "current log level is info,access=off,proxy=debug\n"
    )
    assert proxy.levels.enabled("proxy", DEBUG)
    bad = httpx.post(f"{url}?level=proxy:debug")
    assert bad.status_code == 400
    assert "usage: POST /logging" in bad.text
    assert httpx.post(f"{url}?reset&level=warn").text == "current log level is warn\n"
    assert httpx.post(f"{url}?reset").text == "current log level is info\n"


def test_shutdown_needs_a_post_that_is_not_from_a_web_page(proxy: Proxy) -> None:
    url = proxy.url("admin", "/quitquitquit")
    assert httpx.get(url).status_code == 405
    assert httpx.post(url, headers={"origin": "https://example.com"}).status_code == 403
    assert not proxy.shutdown_asked.is_set()
    answer = httpx.post(url)
    assert (answer.status_code, answer.text) == (200, "shutdown now\n")
    assert proxy.shutdown_asked.is_set()


def test_tasks_of_the_event_loop(proxy: Proxy) -> None:
    url = proxy.url("admin", "/debug/tasks")
    assert httpx.get(url).text == "1 tasks\n"
    proxy.stuck = True
    answer = httpx.get(url)
    assert answer.status_code == 503
    assert "did not get to answer" in answer.text
    assert "SIGUSR1" in answer.text


def test_index_and_unknown_pages(proxy: Proxy) -> None:
    assert "config_dump" in httpx.get(proxy.url("admin", "/")).text
    assert httpx.get(proxy.url("admin", "/nothing")).status_code == 404
    assert httpx.get(proxy.url("admin", "/metrics")).status_code == 404


def test_a_broken_part_is_a_500_and_the_server_goes_on(proxy: Proxy) -> None:
    proxy.settings["broken"] = Unprintable()
    assert httpx.get(proxy.url("admin", "/config_dump")).status_code == 500
    del proxy.settings["broken"]
    assert httpx.get(proxy.url("admin", "/config_dump")).status_code == 200


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("not printable")


def test_a_request_that_never_ends_is_cut_off(proxy: Proxy) -> None:
    with closing(proxy.connect("metrics")) as silent, closing(proxy.connect("metrics")) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n")
        assert ended(silent)
        assert ended(slow)


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends the connection without a byte; waits as long as the socket's timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("server", ["readiness", "metrics"])
@pytest.mark.parametrize("asking", [True, False], ids=["after a request", "silent"])
def test_connections_that_are_kept_open_make_room_for_a_probe(
    proxy: Proxy, server: str, asking: bool
) -> None:
    path = {"readiness": "/healthz/ready", "metrics": "/metrics"}[server]
    with contextlib.ExitStack() as held:
        kept = [held.enter_context(closing(proxy.connect(server))) for _ in range(MAX_CONNECTIONS)]
        for one in kept if asking else ():
            ask(one)
        if asking:
            ask(kept[0])  # so the second is the one that has been quiet for longest
        assert httpx.get(proxy.url(server, path)).status_code in (200, 500)
        assert ended(kept[1 if asking else 0])
        if asking:
            ask(kept[0])
            ask(kept[-1])


def ask(connection: socket.socket) -> None:
    """A request of which the connection is kept open."""
    connection.sendall(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = b""
    while not answer.endswith(b"Not Found"):
        received = connection.recv(4096)
        assert received, "closed"
        answer += received


def test_readers_that_do_not_read_make_room_for_one_that_does(proxy: Proxy) -> None:
    proxy.settings["large"] = "x" * 4_000_000  # more than the sockets hold
    with contextlib.ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            stalled = held.enter_context(closing(proxy.connect("admin")))
            stalled.sendall(b"GET /config_dump HTTP/1.1\r\nhost: x\r\n\r\n")
        assert httpx.get(proxy.url("admin", "/debug/tasks")).text == "1 tasks\n"


def test_a_head_that_is_too_large_is_refused(proxy: Proxy) -> None:
    with closing(proxy.connect("admin")) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nx: " + b"a" * MAX_HEAD_BYTES * 2)
        assert raw.recv(65536).startswith(b"HTTP/1.1 4")


def test_an_occupied_port_fails_the_start_and_leaves_nothing_bound() -> None:
    with closing(socket.create_server(LOOPBACK)) as occupied:
        running = Proxy(metrics_address=occupied.getsockname())
        with pytest.raises(ConfigError) as caught:
            running.servers.start()
    assert caught.value.code == "telemetry_bind"
    assert "metrics server cannot listen on 127.0.0.1:" in str(caught.value)
    assert running.servers.stop()


@pytest.mark.parametrize("address", [("127.0.0.1", 70000), ("no such host.invalid", 0)])
def test_an_address_that_cannot_be_is_a_configuration_error(address: Address) -> None:
    with pytest.raises(ConfigError):
        Proxy(readiness_address=address).servers.start()


def test_servers_can_be_left_out_and_serve_all_addresses() -> None:
    running = Proxy(admin_address=None, metrics_address=("", 0), readiness_address=None)
    running.servers.start()
    try:
        assert set(running.servers.addresses) == {"metrics"}
        port = running.servers.addresses["metrics"][1]
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
    finally:
        assert running.servers.stop(30)


def test_stop_closes_idle_connections_and_the_thread() -> None:
    before = threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        running = Proxy()
        running.servers.start()
        with httpx.Client() as client:
            assert client.get(running.url("admin", "/")).status_code == 200
            address = running.servers.addresses["admin"]
            assert running.servers.stop(30)
        assert threading.active_count() == before
    with closing(socket.create_server(address)):
        pass
