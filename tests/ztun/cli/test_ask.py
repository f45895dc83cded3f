"""The list commands, against real servers and against saved dumps."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ztun.cli import ask, outcome
from ztun.cli.admin_client import parse_dump
from ztun.cli.dump_models import Dump
from ztun.cli.listing import (
    duration,
    list_certificates,
    list_connections,
    list_policies,
    list_services,
    list_workloads,
)
from ztun.errors import ConfigError
from ztun.mesh.model import Service, Vip, Workload
from ztun.mesh.snapshot import build_snapshot
from ztun.telemetry.config_dump import ConfigDump, ConnectionEntry
from ztun.telemetry.levels import Levels
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness
from ztun.telemetry.server import TelemetryServers

pytestmark = pytest.mark.net

DUMP = {
    "workloads": [
        {
            "uid": "e1",
            "name": "echo-1",
            "namespace": "demo",
            "workloadIps": ["10.0.0.2"],
            "node": "node-2",
            "protocol": "HBONE",
            "waypoint": {"destination": "demo/waypoint.demo.svc.cluster.local"},
            "someNewField": {"kept": True},
        },
        {
            "uid": "c1",
            "name": "client-1",
            "namespace": "default",
            "workloadIps": ["10.0.0.1"],
            "node": "node-1",
        },
    ],
    "services": [
        {
            "name": "waypoint",
            "namespace": "demo",
            "hostname": "waypoint.demo.svc.cluster.local",
            "vips": ["/10.96.0.9"],
        },
        {
            "name": "echo",
            "namespace": "demo",
            "hostname": "echo.demo.svc.cluster.local",
            "vips": ["/10.96.0.1"],
            "endpoints": {"e1": {"status": "Healthy"}, "e2": {"status": "Unhealthy"}},
            "waypoint": {"destination": "/10.96.0.9"},
        },
    ],
    "policies": [
        {"name": "b", "namespace": "demo", "action": "Deny", "scope": "Namespace"},
        {"name": "a", "namespace": "demo", "action": "Allow", "scope": "Global"},
    ],
    "certificates": [
        {"identity": "spiffe://td/ns/x/sa/y", "state": "Unavailable: no CA", "certChain": []},
        {
            "identity": "spiffe://td/ns/a/sa/b",
            "state": "Available",
            "certChain": [
                {
                    "serialNumber": "255",
                    "validFrom": "2026-01-01T00:00:00Z",
                    "expirationTime": "2026-01-02T00:00:00Z",
                },
                {
                    "serialNumber": "16",
                    "validFrom": "2025-01-01T00:00:00Z",
                    "expirationTime": "2025-01-02T00:00:00Z",
                },
            ],
            "rootCerts": [
                {
                    "serialNumber": "1",
                    "validFrom": "2025-01-01T00:00:00Z",
                    "expirationTime": "2035-01-01T00:00:00Z",
                }
            ],
        },
    ],
    "workloadState": {
        "e1": {
            "info": {"name": "echo-1", "namespace": "demo"},
            "connections": {
                "inbound": [
                    {
                        "src": "10.0.0.1:4",
                        "originalDst": "echo.demo.svc.cluster.local",
                        "actualDst": "10.0.0.2:9000",
                        "protocol": "HBONE",
                        "ageSeconds": 100.0,
                        "idleSeconds": 50.0,
                        "bytesSent": 1,
                        "bytesReceived": 2,
                    }
                ],
                "outbound": [],
            },
        },
        "c1": {
            "info": {"name": "client-1", "namespace": "default"},
            "connections": {
                "inbound": [],
                "outbound": [
                    {
                        "src": "10.0.0.1:3",
                        "originalDst": "10.96.0.1:80",
                        "actualDst": "10.0.0.2:15008",
                        "protocol": "HBONE",
                        "ageSeconds": 5.0,
                        "idleSeconds": 1.0,
                        "bytesSent": 100,
                        "bytesReceived": 200,
                    },
                    {
                        "src": "10.0.0.1:2",
                        "originalDst": "10.9.9.9:80",
                        "actualDst": "10.9.9.9:80",
                        "protocol": "TCP",
                        "ageSeconds": 7.0,
                        "idleSeconds": 7.0,
                    },
                ],
            },
        },
    },
}


def run(*arguments: str) -> int:
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    ask.register(app)
    return outcome.run(app, "ztun", arguments)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(DUMP))
    return str(path)


def parsed(dump: object = DUMP) -> Dump:
    return parse_dump(json.dumps(dump).encode(), "test")


def test_workloads_have_istioctl_s_columns_and_a_stable_order() -> None:
    listing = list_workloads(parsed())
    assert listing.columns == ("NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL")
    assert listing.rows == (
        ("default", "client-1", "10.0.0.1", "node-1", "None", ""),
        ("demo", "echo-1", "10.0.0.2", "node-2", "waypoint", "HBONE"),
    )
    assert listing.items[1] == DUMP["workloads"][0]
    assert [row[1] for row in list_workloads(parsed(), namespace="demo").rows] == ["echo-1"]
    assert [row[1] for row in list_workloads(parsed(), node="node-1").rows] == ["client-1"]
    assert [row[1] for row in list_workloads(parsed(), address="10.0.0.2").rows] == ["echo-1"]


def test_services_count_ready_endpoints() -> None:
    listing = list_services(parsed())
    assert listing.columns == ("NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS")
    assert listing.rows == (
        ("demo", "echo", "10.96.0.1", "waypoint", "1/2"),
        ("demo", "waypoint", "10.96.0.9", "None", "0/0"),
    )


def test_policies() -> None:
    assert list_policies(parsed()).rows == (
        ("demo", "a", "Allow", "Global"),
        ("demo", "b", "Deny", "Namespace"),
    )
    assert list_policies(parsed(), namespace="other").rows == ()


def test_certificates_by_type_and_validity() -> None:
    listing = list_certificates(parsed(), now=datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert listing.rows == (
        (
            "spiffe://td/ns/a/sa/b",
            "Leaf",
            "Available",
            "true",
            "ff",
            "2026-01-02T00:00:00Z",
            "2026-01-01T00:00:00Z",
        ),
        (
            "spiffe://td/ns/a/sa/b",
            "Intermediate",
            "Available",
            "false",
            "10",
            "2025-01-02T00:00:00Z",
            "2025-01-01T00:00:00Z",
        ),
        (
            "spiffe://td/ns/a/sa/b",
            "Root",
            "Available",
            "true",
            "1",
            "2035-01-01T00:00:00Z",
            "2025-01-01T00:00:00Z",
        ),
        ("spiffe://td/ns/x/sa/y", "NA", "Unavailable", "false", "NA", "NA", "NA"),
    )


def test_connections_show_names_and_sort() -> None:
    listing = list_connections(parsed())
    assert listing.columns[:6] == ("WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL")
    assert [row[:6] for row in listing.rows] == [
        ("client-1.default", "Outbound", "client-1.default:2", "10.9.9.9:80", "10.9.9.9:80", "TCP"),
        (
            "client-1.default",
            "Outbound",
            "client-1.default:3",
            "echo-1.demo:15008",
            "echo.demo.svc.cluster.local:80",
            "HBONE",
        ),
        (
            "echo-1.demo",
            "Inbound",
            "echo-1.demo:9000",
            "client-1.default:4",
            "echo.demo.svc.cluster.local",
            "HBONE",
        ),
    ]
    assert listing.rows[2][6:] == ("1m40s", "50s", "1", "2")
    order = {key: [row[2] for row in list_connections(parsed(), sort=key, raw=True).rows] for key in ask.Sort}
    assert order == {
        "age": ["10.0.0.2:9000", "10.0.0.1:2", "10.0.0.1:3"],
        "bytes": ["10.0.0.1:3", "10.0.0.2:9000", "10.0.0.1:2"],
        "idle": ["10.0.0.2:9000", "10.0.0.1:2", "10.0.0.1:3"],
    }
    assert len(list_connections(parsed(), direction="inbound").rows) == 1
    assert len(list_connections(parsed(), namespace="default").rows) == 2


def test_durations() -> None:
    seconds = (0.9, 59, 60, 3599, 3600, 86399, 86400, 200000)
    assert [duration(one) for one in seconds] == [
        "0s",
        "59s",
        "1m0s",
        "59m59s",
        "1h0m",
        "23h59m",
        "1d0h",
        "2d7h",
    ]


def test_the_table_has_one_line_per_row_however_narrow_the_terminal(
    saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert run("connections", "-f", saved) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    header = "WORKLOAD DIRECTION LOCAL REMOTE REMOTE TARGET PROTOCOL AGE IDLE SENT RECEIVED"
    assert " ".join(lines[0].split()) == header
    assert "echo.demo.svc.cluster.local:80" in lines[2]


def test_json_and_yaml_hold_what_the_dump_holds(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workloads", "-f", saved, "-o", "json") == 0
    from_json = json.loads(capsys.readouterr().out)
    assert run("workloads", "-f", saved, "-o", "yaml") == 0
    from_yaml = yaml.safe_load(capsys.readouterr().out)
    assert from_json == from_yaml == list(reversed(DUMP["workloads"]))
    assert run("connections", "-f", saved, "-o", "json", "--sort", "bytes") == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert (first["workload"], first["direction"], first["src"]) == ("client-1", "outbound", "10.0.0.1:3")


def test_a_dump_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(DUMP).encode())))
    assert run("policies", "-f", "-") == 0
    assert "Namespace" in capsys.readouterr().out


def test_control_characters_of_a_dump_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"workloads": [{"name": "a\x1b[2J[red]", "namespace": "b\nc"}]}))
    assert run("workloads", "-f", str(path)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2
    assert "[2J[red]" in out


def test_dumps_of_older_proxies_are_keyed_by_address() -> None:
    old = {"workloads": {"/10.0.0.1": {"name": "a", "namespace": "b"}}, "services": {}, "policies": {}}
    assert [row[:2] for row in list_workloads(parsed(old)).rows] == [("b", "a")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"workloads": 3}', '{"workloads": [{"name": "a"}]}', "\xff"]
)
def test_what_is_not_a_dump_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="does not hold a config dump") as caught:
        parse_dump(text.encode("latin-1"), "somewhere")
    assert caught.value.code == "not_a_dump"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
ODD = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=2)


def paths(shape: object, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if prefix:
        yield prefix
    parts = shape.items() if isinstance(shape, dict) else enumerate(shape) if isinstance(shape, list) else ()
    for key, part in parts:
        yield from paths(part, (*prefix, key))


@st.composite
def mutants(draw: st.DrawFn, shape: object) -> object:
    """A copy with one to three parts left out or replaced by something else."""
    copy = json.loads(json.dumps(shape))
    for path in draw(st.lists(st.sampled_from(list(paths(shape))), min_size=1, max_size=3)):
        parent = copy
        try:
            for key in path[:-1]:
                parent = parent[key]
            if draw(st.booleans()):
                del parent[path[-1]]
            else:
                parent[path[-1]] = draw(ODD)
        except (LookupError, TypeError):
            continue  # an earlier change took this place away
    return copy


@settings(max_examples=300)
@given(dump=mutants(DUMP))
def test_any_json_is_listed_or_refused(dump: object) -> None:
    try:
        read = parse_dump(json.dumps(dump).encode(), "test")
    except ConfigError as error:
        assert error.code == "not_a_dump"
        return
    event("listed")
    for listing in (
        list_workloads(read),
        list_services(read),
        list_policies(read),
        list_certificates(read, now=datetime(2026, 1, 1, tzinfo=UTC)),
        list_connections(read),
    ):
        assert all(len(row) == len(listing.columns) for row in listing.rows)
        json.dumps(listing.items)


@pytest.mark.parametrize("serial", ["9" * 5000, "²", "-1", "ab"])
def test_strange_serial_numbers_are_shown_as_they_are(serial: str) -> None:
    certificate = {"serialNumber": serial, "validFrom": "yesterday", "expirationTime": ""}
    identity = {"identity": "i", "state": "Available", "certChain": [certificate]}
    (row,) = list_certificates(
        parsed({"workloads": [], "certificates": [identity]}), now=datetime(2026, 1, 1, tzinfo=UTC)
    ).rows
    assert row == ("i", "Leaf", "Available", "false", serial, "NA", "yesterday")


def test_the_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workloads", "-f", str(tmp_path / "missing.json")) == 1
    assert "cannot read" in capsys.readouterr().err
    assert run("workloads", "-o", "xml") == 2
    assert run("connections", "--sort", "name") == 2
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    assert run("services", "--admin", address) == 1
    error = capsys.readouterr().err
    assert f"no proxy answers at {address}" in error
    assert "hint: start one with 'ztun proxy'" in error
    assert "Errno" not in error
    for wrong, said in (
        ("127.0.0.1:notaport", "is not a port from 1 to 65535"),
        ("localhost", "has no port"),
    ):
        assert run("services", "--admin", wrong) == 1
        error = capsys.readouterr().err
        assert said in error
        assert "hint: write HOST:PORT" in error


class Proxy:
    """The admin server of a proxy with two workloads and a connection."""

    def __init__(self) -> None:
        self.levels = Levels("info")
        self.shutdown = threading.Event()
        client = Workload(uid="c", name="client-1", namespace="default", addresses=("10.0.0.1",))
        service = Service("echo", "default", "echo.default.svc.cluster.local", vips=(Vip("", "10.96.0.1"),))
        self.client = client
        self.snapshot = build_snapshot(workloads=[client], services=[service], policies=[])
        connection = ConnectionEntry(
            client, "outbound", "10.0.0.1:1", "10.96.0.1:80", "10.0.0.2:15008", "HBONE", age_seconds=3700
        )
        self.servers = TelemetryServers(
            dump=ConfigDump(snapshot=lambda: self.snapshot, connections=lambda: [connection]),
            metrics=Metrics(),
            readiness=Readiness(),
            levels=self.levels,
            shutdown=self.shutdown.set,
            admin_address=("127.0.0.1", 0),
            metrics_address=None,
            readiness_address=("127.0.0.1", 0),
        )

    def at(self, name: str) -> str:
        host, port = self.servers.addresses[name]
        return f"{host}:{port}"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    running = Proxy()
    running.servers.start()
    yield running
    assert running.servers.stop(30)


def test_a_running_proxy_answers(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    for command, expected in {
        "workloads": "client-1",
        "services": "10.96.0.1",
        "connections": "echo.default.svc.cluster.local:80",
        "policies": "POLICY NAME",
        "certificates": "CERTIFICATE NAME",
    }.items():
        assert run(command, "--admin", proxy.at("admin")) == 0
        assert expected in capsys.readouterr().out


@pytest.fixture
def watching(proxy: Proxy) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``ztun ... --watch`` as a process."""
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            child = subprocess.Popen(
                [sys.executable, "-m", "ztun", *arguments, "--watch", "--admin", proxy.at("admin")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            return child

        yield start


def interrupted(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code and what else was written, after Ctrl-C."""
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=30)
    return child.returncode, output, errors


def test_a_watched_list_is_shown_again_when_it_changes(
    proxy: Proxy, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    child = watching("workloads", "-o", "json")
    assert child.stdout is not None
    assert [one["name"] for one in json.loads(child.stdout.readline())] == ["client-1"]
    other = replace(proxy.client, uid="d", name="client-2", addresses=("10.0.0.9",))
    proxy.snapshot = build_snapshot(workloads=[proxy.client, other], services=[], policies=[])
    assert [one["name"] for one in json.loads(child.stdout.readline())] == ["client-1", "client-2"]
    assert interrupted(child) == (130, "", "")


def test_a_watched_table_ends_with_an_empty_line(
    proxy: Proxy, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    child = watching("services")
    assert child.stdout is not None
    table = [child.stdout.readline() for _ in range(3)]
    assert table[0].split()[:2] == ["NAMESPACE", "SERVICE"]
    assert table[1].split()[:2] == ["default", "echo"]
    assert table[2] == "\n"
    assert interrupted(child) == (130, "", "")


def test_a_proxy_that_is_away_for_a_while_is_waited_for(
    proxy: Proxy, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    child = watching("services", "-o", "yaml")
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "---\n"
    proxy.servers.stop(30)
    assert "no proxy answers at" in child.stderr.readline()
    assert child.stderr.readline() == "hint: asked again until it answers\n"
    assert interrupted(child)[::2] == (130, "")


def test_a_saved_dump_cannot_be_watched(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workloads", "--watch", "-f", saved) == 2
    assert "a saved dump does not change" in capsys.readouterr().err


def test_log_levels_of_a_running_proxy(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    admin = proxy.at("admin")
    assert run("log", "--admin", admin, "--level", "proxy=debug") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["SCOPE", "LEVEL"],
        ["*", "info"],
        ["proxy", "debug"],
    ]
    assert str(proxy.levels) == "info,proxy=debug"
    assert run("log", "--admin", admin, "--reset", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"scope": "*", "level": "info"}]
    assert run("log", "--admin", admin, "--level", "loud") == 1
    assert "'loud' is not a log level (use one of trace" in capsys.readouterr().err


def test_another_server_is_not_taken_for_a_proxy(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("workloads", "--admin", proxy.at("readiness")) == 1
    error = capsys.readouterr().err
    assert "answered 404 to GET /config_dump" in error
    assert "is this the admin port of a proxy?" in error
