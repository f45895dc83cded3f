from __future__ import annotations

import base64
import ipaddress
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certs.spiffe import SpiffeId
from ztun.mesh.model import (
    ApplicationTunnel,
    AppTunnelProtocol,
    Authorization,
    BalanceMode,
    GatewayAddress,
    Health,
    IpFamilies,
    LoadBalancing,
    Locality,
    Match,
    NetworkAddress,
    PolicyAction,
    PolicyScope,
    Scope,
    Service,
    ServicePort,
    StringMatch,
    StringMatchKind,
    TunnelProtocol,
    Vip,
    WeightedWaypoint,
    Workload,
    WorkloadType,
)
from ztun.mesh.snapshot import build_snapshot
from ztun.telemetry.config_dump import (
    ConfigDump,
    ConnectionEntry,
    ServedWorkload,
    redact,
    workload_state,
)
from ztun.telemetry.dump import mesh_dump

pytestmark = pytest.mark.unit

ECHO_KEY = ("demo", "echo.demo.svc.cluster.local")
ECHO = Workload(
    uid="Kubernetes//Pod/demo/echo-1",
    name="echo-1",
    namespace="demo",
    addresses=("10.0.0.2",),
    service_account="echo",
    network="net1",
    node="node-1",
    tunnel_protocol=TunnelProtocol.HBONE,
    services={ECHO_KEY: {80: 9000}},
    authorization_policies=("demo/b", "demo/a"),
    waypoint=GatewayAddress(("demo", "waypoint.demo.svc.cluster.local")),
    network_gateway=GatewayAddress(NetworkAddress("net1", "10.9.9.9"), 15009),
    application_tunnel=ApplicationTunnel(AppTunnelProtocol.PROXY, 15088),
    workload_name="echo",
    workload_type=WorkloadType.DEPLOYMENT,
    canonical_name="echo",
    canonical_revision="v1",
    locality=Locality("eu"),
)
CLIENT = Workload(
    uid="Kubernetes//Pod/default/client-1",
    name="client-1",
    namespace="default",
    services={ECHO_KEY: {80: 9000}},
    health=Health.UNHEALTHY,
    host_network=True,
)
SERVICE = Service(
    name="echo",
    namespace="demo",
    hostname="echo.demo.svc.cluster.local",
    vips=(Vip("", "10.96.0.1"), Vip("", "10.97.0.0", ipaddress.ip_network("10.97.0.0/16"))),
    ports={80: ServicePort(80, 9000)},
    subject_alt_names=(SpiffeId("cluster.local", "demo", "other"),),
    waypoint=GatewayAddress(NetworkAddress("", "10.96.0.9")),
    weighted_waypoints=(WeightedWaypoint(GatewayAddress(("demo", "canary.demo.svc.cluster.local")), 5),),
    load_balancing=LoadBalancing(BalanceMode.FAILOVER, (Scope.NETWORK, Scope.REGION)),
    ip_families=IpFamilies.DUAL,
)
POLICY = Authorization(
    name="p",
    namespace="demo",
    scope=PolicyScope.WORKLOAD_SELECTOR,
    action=PolicyAction.DENY,
    rules=(
        (
            (
                Match(
                    principals=(
                        StringMatch(StringMatchKind.EXACT, "td/ns/x/sa/y"),
                        StringMatch(StringMatchKind.PRESENCE),
                    ),
                    source_ips=(ipaddress.ip_network("10.0.0.0/8"),),
                    destination_ports=(80,),
                    not_service_accounts=(("x", "y"),),
                ),
            ),
        ),
    ),
)


def test_a_workload_has_ztunnel_s_names() -> None:
    dump = mesh_dump(build_snapshot(workloads=[ECHO, CLIENT], services=[SERVICE], policies=[POLICY]))
    client, echo = dump["workloads"]
    assert echo == {
        "uid": "Kubernetes//Pod/demo/echo-1",
        "name": "echo-1",
        "namespace": "demo",
        "workloadIps": ["10.0.0.2"],
        "protocol": "HBONE",
        "trustDomain": "cluster.local",
        "serviceAccount": "echo",
        "network": "net1",
        "hostname": "",
        "networkMode": "Standard",
        "node": "node-1",
        "workloadName": "echo",
        "workloadType": "deployment",
        "canonicalName": "echo",
        "canonicalRevision": "v1",
        "clusterId": "Kubernetes",
        "locality": {"region": "eu"},
        "nativeTunnel": False,
        "status": "Healthy",
        "capacity": 1,
        "authorizationPolicies": ["demo/a", "demo/b"],
        "services": {"demo/echo.demo.svc.cluster.local": {"80": 9000}},
        "waypoint": {"destination": "demo/waypoint.demo.svc.cluster.local", "hboneMtlsPort": 15008},
        "networkGateway": {"destination": "net1/10.9.9.9", "hboneMtlsPort": 15009},
        "applicationTunnel": {"protocol": "PROXY", "port": 15088},
    }
    assert client["protocol"] == "TCP"
    assert client["networkMode"] == "HostNetwork"
    assert "waypoint" not in client


def test_a_service_has_its_endpoints_ready_or_not() -> None:
    dump = mesh_dump(build_snapshot(workloads=[ECHO, CLIENT], services=[SERVICE], policies=[]))
    assert dump["services"] == [
        {
            "name": "echo",
            "namespace": "demo",
            "hostname": "echo.demo.svc.cluster.local",
            "vips": ["/10.96.0.1"],
            "cidrVips": ["/10.97.0.0/16"],
            "ports": {"80": 9000},
            "endpoints": {
                CLIENT.uid: {
                    "workloadUid": CLIENT.uid,
                    "service": "demo/echo.demo.svc.cluster.local",
                    "port": {"80": 9000},
                    "status": "Unhealthy",
                },
                ECHO.uid: {
                    "workloadUid": ECHO.uid,
                    "service": "demo/echo.demo.svc.cluster.local",
                    "port": {"80": 9000},
                    "status": "Healthy",
                },
            },
            "subjectAltNames": ["spiffe://cluster.local/ns/demo/sa/other"],
            "ipFamilies": "Dual",
            "canonical": False,
            "visibility": "Public",
            "waypoint": {"destination": "/10.96.0.9", "hboneMtlsPort": 15008},
            "weightedWaypoints": [
                {"destination": "demo/canary.demo.svc.cluster.local", "hboneMtlsPort": 15008, "weight": 5}
            ],
            "loadBalancer": {
                "mode": "Failover",
                "routingPreferences": ["Network", "Region"],
                "healthPolicy": "OnlyHealthy",
            },
        }
    ]


def test_a_policy_keeps_its_three_levels() -> None:
    dump = mesh_dump(build_snapshot(workloads=[], services=[], policies=[POLICY]))
    assert dump["policies"] == [
        {
            "name": "p",
            "namespace": "demo",
            "scope": "WorkloadSelector",
            "action": "Deny",
            "dryRun": False,
            "rules": [
                [
                    [
                        {
                            "notServiceAccounts": [{"namespace": "x", "serviceAccount": "y"}],
                            "principals": [{"Exact": "td/ns/x/sa/y"}, {"Presence": {}}],
                            "sourceIps": ["10.0.0.0/8"],
                            "destinationPorts": [80],
                        }
                    ]
                ]
            ],
            "targetRefs": [],
        }
    ]


def test_the_order_of_the_input_does_not_matter() -> None:
    other = Service(name="a", namespace="demo", hostname="a.demo.svc.cluster.local")
    one = build_snapshot(workloads=[ECHO, CLIENT], services=[SERVICE, other], policies=[POLICY])
    two = build_snapshot(workloads=[CLIENT, ECHO], services=[other, SERVICE], policies=[POLICY])
    assert json.dumps(mesh_dump(one)) == json.dumps(mesh_dump(two))


def test_workload_state_lists_connections_by_direction() -> None:
    connections = [
        ConnectionEntry(CLIENT, "outbound", "10.0.0.1:2", "10.96.0.1:80", "10.0.0.2:15008", "HBONE"),
        ConnectionEntry(
            CLIENT,
            "outbound",
            "10.0.0.1:1",
            "10.96.0.1:80",
            "10.0.0.2:15008",
            "HBONE",
            2.0004,
            1.0,
            11,
            22,
            True,
        ),
    ]
    state = workload_state([ServedWorkload(ECHO, up=False)], connections)
    assert list(state) == [CLIENT.uid, ECHO.uid]
    assert state[ECHO.uid] == {
        "state": "Pending",
        "info": {
            "name": "echo-1",
            "namespace": "demo",
            "trustDomain": "cluster.local",
            "serviceAccount": "echo",
        },
        "connections": {"inbound": [], "outbound": []},
    }
    up = state[CLIENT.uid]
    assert isinstance(up, dict)
    assert up["state"] == "Up"
    assert [one["src"] for one in up["connections"]["outbound"]] == ["10.0.0.1:1", "10.0.0.1:2"]
    assert up["connections"]["outbound"][0] == {
        "src": "10.0.0.1:1",
        "originalDst": "10.96.0.1:80",
        "actualDst": "10.0.0.2:15008",
        "protocol": "HBONE",
        "ageSeconds": 2.0,
        "idleSeconds": 1.0,
        "bytesSent": 11,
        "bytesReceived": 22,
        "halfClosed": True,
    }


@dataclass(frozen=True)
class Entry:
    identity: SpiffeId
    state: str
    chain: tuple[x509.Certificate, ...] = ()
    roots: tuple[x509.Certificate, ...] = ()


def certificate(serial: int) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=1)).serial_number(serial)
    return builder.sign(key, hashes.SHA256())


def test_the_whole_dump() -> None:
    leaf, root = certificate(255), certificate(7)
    entries = [
        Entry(SpiffeId("cluster.local", "b", "b"), "Unavailable: no CA"),
        Entry(SpiffeId("cluster.local", "a", "a"), "Available", (leaf,), (root,)),
    ]
    dump = ConfigDump(
        snapshot=lambda: build_snapshot(workloads=[ECHO], services=[], policies=[], generation=7),
        certificates=lambda: entries,
        settings=lambda: {"admin_port": 15000},
    ).collect()
    assert list(dump) == [
        "workloads",
        "services",
        "policies",
        "stagedServices",
        "staticConfig",
        "version",
        "config",
        "certificates",
        "workloadState",
        "problems",
        "generation",
    ]
    assert dump["generation"] == 7
    first, second = dump["certificates"]
    assert second == {
        "identity": "spiffe://cluster.local/ns/b/sa/b",
        "state": "Unavailable: no CA",
        "certChain": [],
        "rootCerts": [],
    }
    (chain,) = first["certChain"]
    assert x509.load_pem_x509_certificate(base64.b64decode(chain.pop("pem"))) == leaf
    assert chain == {
        "serialNumber": "255",
        "validFrom": "2026-01-01T00:00:00Z",
        "expirationTime": "2026-01-02T00:00:00Z",
    }
    json.dumps(dump)


class Mode(Enum):
    SHARED = "shared"


@dataclass
class Nested:
    pool_max_streams: int = 100
    mode: Mode = Mode.SHARED
    keys_per_tunnel: int = 7
    lifetime: timedelta = timedelta(hours=1)
    by_mode: dict[Mode, int] = field(default_factory=lambda: {Mode.SHARED: 1})
    ca_headers: dict[str, str] = field(default_factory=lambda: {"x": "secret value"})


def test_settings_are_plain_camel_case_and_hold_no_secret() -> None:
    shown = redact(
        {
            "nested": Nested(),
            "auth_token": "secret value",
            "AUTH_TOKEN": "secret value",
            "authToken": "secret value",
            "privateKey": "secret value",
            "password": "",
            "keepalive": True,
            "tokenless": "shown",
            "paths": (Path("a/b"),),
            "names": {"b", "a"},
            "url": "https://user:secret value@example.com/x".replace(" ", "_"),
            "pem": "-----BEGIN PRIVATE KEY-----\nsecret value",
            "nothing": None,
        }
    )
    assert "secret" not in json.dumps(shown)
    assert shown == {
        "nested": {
            "poolMaxStreams": 100,
            "mode": "shared",
            "keysPerTunnel": 7,
            "lifetime": 3600.0,
            "byMode": {"shared": 1},
            "caHeaders": "[redacted]",
        },
        "authToken": "[redacted]",
        "AUTHTOKEN": "[redacted]",
        "privateKey": "[redacted]",
        "password": "",
        "keepalive": True,
        "tokenless": "shown",
        "paths": ["a/b"],
        "names": ["a", "b"],
        "url": "https://[redacted]@example.com/x",
        "pem": "[redacted]",
        "nothing": None,
    }


def test_settings_that_contain_themselves_end() -> None:
    loop: dict[str, object] = {}
    loop["again"] = loop
    assert "..." in json.dumps(redact(loop))
