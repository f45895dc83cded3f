from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest

from ztun.errors import PolicyDenied
from ztun.mesh.baggage import Baggage
from ztun.mesh.model import Workload
from ztun.telemetry.access_log import AccessLog, AccessLogMode, ConnectionReport, complete_fields
from ztun.telemetry.levels import Levels
from ztun.telemetry.lines import text_line
from ztun.telemetry.writer import LineWriter

pytestmark = pytest.mark.unit

CLIENT = Workload(uid="c", name="client-1", namespace="default", service_account="client")
ECHO = Workload(
    uid="e", name="", canonical_name="echo", namespace="demo", service_account="echo", cluster_id="west"
)
TIME = "2023-11-14T22:13:20.000000Z"


class Log:
    """An access log and what it wrote."""

    def __init__(
        self, mode: AccessLogMode = "text", levels: Levels | None = None, *, open_records: bool = False
    ) -> None:
        self._sink = io.BytesIO()
        self._writer = LineWriter(self._sink)
        self._writer.start()
        self.log = AccessLog(
            self._writer, mode=mode, levels=levels, open_records=open_records, clock=lambda: 1_700_000_000.0
        )

    def lines(self) -> list[str]:
        assert self._writer.close(30)
        return self._sink.getvalue().decode().splitlines()


def outbound() -> ConnectionReport:
    return ConnectionReport(
        source_addr="10.0.0.1:40000",
        destination_addr="10.0.0.2:15008",
        direction="outbound",
        hbone_addr="10.0.0.2:9000",
        service="echo.demo.svc.cluster.local",
        source=CLIENT,
        destination=ECHO,
        source_identity=CLIENT.identity,
        destination_identity=ECHO.identity,
        bytes_sent=11,
        bytes_recv=22,
        duration_seconds=0.1239,
    )


def test_a_source_in_its_own_words() -> None:
    log = Log()
    report = outbound()
    for name in ("cart", "", 'a"b\\'):
        report.source = Baggage("far", "shop", "cart-v1", canonical_name=name)
        log.log.complete(report)
    lines = log.lines()
    identity = 'src.identity="spiffe://cluster.local/ns/default/sa/client"'
    for line, name in zip(lines, ['src.workload="cart" ', "", 'src.workload="a\\"b\\\\" '], strict=True):
        assert f'src.addr=10.0.0.1:40000 {name}src.namespace="shop" {identity} src.cluster="far" dst' in line


FIELDS = (
    'src.addr=10.0.0.1:40000 src.workload="client-1" src.namespace="default" '
    'src.identity="spiffe://cluster.local/ns/default/sa/client" src.cluster="Kubernetes" '
    'dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:9000 dst.service="echo.demo.svc.cluster.local" '
    'dst.workload="echo" dst.namespace="demo" dst.identity="spiffe://cluster.local/ns/demo/sa/echo" '
    'dst.cluster="west" direction="outbound"'
)


def test_a_successful_connection() -> None:
    log = Log()
    log.log.complete(outbound())
    assert log.lines() == [
        f'{TIME}\tinfo\taccess\tconnection complete\t{FIELDS} bytes_sent=11 bytes_recv=22 duration="123ms"'
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"service": ""},
        {"hbone_addr": "", "source_identity": None, "destination_identity": None},
        {"source": None},
        {"destination": None, "destination_identity": None},
        {"source": None, "source_identity": None},
        {"hbone_addr": 'a" b', "service": 'x"y\n'},
        {"direction": "inbound", "bytes_sent": 0},
    ],
)
def test_the_line_from_kept_parts_is_the_line_from_its_fields(changes: dict[str, Any]) -> None:
    log = Log()
    report = replace(outbound(), **changes)
    for one in (report, outbound(), report):
        log.log.complete(one)
    fields = [(key, value) for key, value in complete_fields(report, "text") if value not in ("", None)]
    wanted = text_line(1_700_000_000.0, "info", "access", "connection complete", fields)
    lines = log.lines()
    assert lines[0] == lines[2] == wanted


def test_another_workload_of_the_same_uid_has_its_own_text() -> None:
    log = Log()
    log.log.complete(outbound())
    log.log.complete(replace(outbound(), source=replace(CLIENT, name="renamed")))
    assert 'src.workload="renamed"' in log.lines()[1]


def test_the_error_is_the_last_field() -> None:
    log = Log()
    report = outbound()
    report.error = PolicyDenied("policy_deny", 'denied by "default/deny"', hint="see the policy")
    log.log.complete(report)
    (line,) = log.lines()
    assert line.startswith(f"{TIME}\terror\taccess\tconnection complete\t")
    assert line.endswith('duration="123ms" error="denied by \\"default/deny\\""')


def test_a_refused_connection_has_few_fields() -> None:
    log = Log()
    report = outbound()
    report.error = PolicyDenied("unknown_source", "unknown source")
    log.log.failed(report)
    assert log.lines() == [
        (
            f"{TIME}\twarn\taccess\tconnection failed\tsrc.addr=10.0.0.1:40000 dst.addr=10.0.0.2:15008 "
            'direction="outbound" error="unknown source"'
        )
    ]


def test_absent_values_are_left_out_and_zero_is_not() -> None:
    log = Log()
    log.log.complete(ConnectionReport("[2001:db8::1]:5", "10.0.0.2:80", "inbound"))
    (line,) = log.lines()
    assert line.split("\t")[-1] == (
        'src.addr=[2001:db8::1]:5 dst.addr=10.0.0.2:80 direction="inbound" '
        'bytes_sent=0 bytes_recv=0 duration="0ms"'
    )


def test_json_has_the_same_fields_and_the_whole_error() -> None:
    log = Log("json")
    report = outbound()
    report.error = PolicyDenied("policy_deny", "denied", hint="see the policy")
    log.log.complete(report)
    (line,) = log.lines()
    assert list(json.loads(line).items()) == [
        ("level", "error"),
        ("time", TIME),
        ("scope", "access"),
        ("message", "connection complete"),
        ("src.addr", "10.0.0.1:40000"),
        ("src.workload", "client-1"),
        ("src.namespace", "default"),
        ("src.identity", "spiffe://cluster.local/ns/default/sa/client"),
        ("src.cluster", "Kubernetes"),
        ("dst.addr", "10.0.0.2:15008"),
        ("dst.hbone_addr", "10.0.0.2:9000"),
        ("dst.service", "echo.demo.svc.cluster.local"),
        ("dst.workload", "echo"),
        ("dst.namespace", "demo"),
        ("dst.identity", "spiffe://cluster.local/ns/demo/sa/echo"),
        ("dst.cluster", "west"),
        ("direction", "outbound"),
        ("bytes_sent", 11),
        ("bytes_recv", 22),
        ("duration", "123ms"),
        ("error", "denied"),
        ("error.code", "policy_deny"),
        ("error.stage", "policy"),
        ("error.hint", "see the policy"),
    ]


def test_open_records_are_written_at_debug_or_when_asked_for() -> None:
    quiet, wanted, debug = Log(), Log(open_records=True), Log(levels=Levels("info,access=debug"))
    for log in (quiet, wanted, debug):
        log.log.opened(outbound())
    expected = [f"{TIME}\tdebug\taccess\tconnection opened\t{FIELDS}"]
    assert quiet.lines() == []
    assert wanted.lines() == expected
    assert debug.lines() == expected


def test_none_and_a_higher_level_write_nothing() -> None:
    off, errors = Log("none", open_records=True), Log(levels=Levels("error"), open_records=True)
    for log in (off, errors):
        log.log.opened(outbound())
        log.log.complete(outbound())
    assert off.lines() == []
    assert errors.lines() == []


def test_an_authority_cannot_forge_a_field() -> None:
    log = Log()
    report = outbound()
    report.hbone_addr = 'x:1" bytes_sent=9\n2023 error\taccess'
    log.log.complete(report)
    (line,) = log.lines()
    assert 'dst.hbone_addr="x:1\\" bytes_sent=9\\n2023 error\\taccess"' in line
