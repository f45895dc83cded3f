"""Traffic policies: parts replace parts, a port replaces everything, nonsense becomes the default."""

from __future__ import annotations

from typing import Any

import pytest

from waypoint.resources.destination_rule import TrafficPolicySpec
from waypoint.routes.traffic import PolicySpec, policy_spec, resolve
from ztun.traffic.policy import DEFAULT_POLICY, Balancing, PoolLimits, TlsMode, TrafficPolicy

pytestmark = pytest.mark.unit


def spec(**fields: Any) -> PolicySpec:
    return policy_spec(TrafficPolicySpec.model_validate(fields))


def resolved(**fields: Any) -> TrafficPolicy:
    return resolve(spec(**fields), None, 80)


def test_nothing_written_is_the_default() -> None:
    assert resolve(None, None, 80) is DEFAULT_POLICY
    assert DEFAULT_POLICY.balancing is Balancing.LEAST_REQUEST
    assert DEFAULT_POLICY.pool == PoolLimits(None, 10.0, None, None, 3600.0)


def test_a_subset_replaces_parts_and_keeps_the_rest() -> None:
    base = spec(loadBalancer={"simple": "RANDOM"}, connectionPool={"tcp": {"connectTimeout": "2s"}})
    subset = spec(loadBalancer={"simple": "ROUND_ROBIN"})
    found = resolve(base, subset, 80)
    assert found.balancing is Balancing.ROUND_ROBIN
    assert found.pool.connect_timeout == 2.0


def test_a_port_replaces_every_part() -> None:
    base = spec(
        loadBalancer={"simple": "RANDOM"},
        connectionPool={"tcp": {"connectTimeout": "2s"}},
        outlierDetection={},
        tls={"mode": "SIMPLE"},
        portLevelSettings=[{"port": {"number": 80}, "loadBalancer": {"simple": "ROUND_ROBIN"}}],
    )
    at_port, elsewhere = resolve(base, None, 80), resolve(base, None, 81)
    assert (at_port.balancing, at_port.pool.connect_timeout) == (Balancing.ROUND_ROBIN, 10.0)
    assert (at_port.outlier, at_port.tls.mode) == (None, TlsMode.AUTO)
    assert (elsewhere.balancing, elsewhere.pool.connect_timeout) == (Balancing.RANDOM, 2.0)
    assert (elsewhere.outlier is None, elsewhere.tls.mode) == (False, TlsMode.SIMPLE)


def test_a_part_of_the_subset_applies_over_the_port_of_the_host() -> None:
    base = spec(portLevelSettings=[{"port": {"number": 80}, "loadBalancer": {"simple": "ROUND_ROBIN"}}])
    assert resolve(base, spec(loadBalancer={"simple": "RANDOM"}), 80).balancing is Balancing.RANDOM


def test_the_tcp_settings() -> None:
    found = resolved(
        connectionPool={
            "tcp": {
                "maxConnections": 5,
                "connectTimeout": "500ms",
                "idleTimeout": "0s",
                "maxConnectionDuration": "1m30s",
                "tcpKeepalive": {"probes": 3, "time": "1h", "interval": "75s"},
            }
        }
    ).pool
    assert (found.max_connections, found.connect_timeout) == (5, 0.5)
    assert found.idle_timeout is None
    assert found.max_connection_duration == 90.0
    assert found.keepalive is not None
    assert (found.keepalive.probes, found.keepalive.time, found.keepalive.interval) == (3, 3600.0, 75.0)


@pytest.mark.parametrize(
    ("balancer", "balancing", "hashed", "size"),
    [
        ({"simple": "LEAST_CONN"}, Balancing.LEAST_REQUEST, False, 1024),
        ({"simple": "UNSPECIFIED"}, Balancing.LEAST_REQUEST, False, 1024),
        ({"simple": "PASSTHROUGH"}, Balancing.PASSTHROUGH, False, 1024),
        ({"consistentHash": {"useSourceIp": True}}, Balancing.RING_HASH, True, 1024),
        (
            {"consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 64}}},
            Balancing.RING_HASH,
            True,
            64,
        ),
        ({"consistentHash": {"httpHeaderName": "x"}}, Balancing.RING_HASH, False, 1024),
        ({"consistentHash": {"useSourceIp": True, "maglev": {}}}, Balancing.MAGLEV, True, 65_537),
    ],
)
def test_the_balancers(balancer: dict[str, Any], balancing: Balancing, hashed: bool, size: int) -> None:
    found = resolved(loadBalancer=balancer)
    assert (found.balancing, found.hash_source_ip, found.table_size) == (balancing, hashed, size)


def test_outlier_detection_counts_connect_failures() -> None:
    split = {
        "splitExternalLocalOriginErrors": True,
        "consecutiveLocalOriginFailures": 2,
        "consecutive5xxErrors": 9,
    }
    found = resolved(outlierDetection={**split, "interval": "5s", "baseEjectionTime": "1m"}).outlier
    assert found is not None
    assert (found.consecutive_errors, found.interval, found.base_ejection_time) == (2, 5.0, 60.0)
    plain = resolved(outlierDetection={}).outlier
    assert plain is not None
    assert (plain.consecutive_errors, plain.max_ejection_percent) == (5, 10)


def test_nonsense_becomes_the_default() -> None:
    found = resolved(
        connectionPool={"tcp": {"connectTimeout": "soon", "maxConnections": -1}},
        outlierDetection={"maxEjectionPercent": 900},
        loadBalancer={"consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 10**12}}},
    )
    assert found.pool == PoolLimits()
    assert found.outlier is not None
    assert found.outlier.max_ejection_percent == 100
    assert found.table_size <= 65_536


def test_tls_and_proxy_protocol() -> None:
    found = resolved(tls={"mode": "SIMPLE", "sni": "x"}, proxyProtocol={"version": "V2"})
    assert (found.tls.mode, found.tls.sni, found.proxy_protocol) == (TlsMode.SIMPLE, "x", "V2")
    assert DEFAULT_POLICY.tls.mode is TlsMode.AUTO
