"""Small meshes for the routing tests: services and endpoints as values, routing objects as YAML."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from ztun.mesh.document import Document
from ztun.mesh.model import (
    GatewayAddress,
    NetworkAddress,
    Service,
    ServicePort,
    TunnelProtocol,
    Vip,
    Workload,
    canonical_ip,
)
from ztun.mesh.snapshot import Snapshot, build_snapshot
from ztun.resources.documents import latest_of_each, parse_documents

Resources = Sequence[Mapping[str, Any]]


def documents_of(resources: Resources) -> list[Document]:
    """Plain objects through the text and back, as if they had been read from one file."""
    text = "---\n".join(yaml.safe_dump(dict(resource), sort_keys=False) for resource in resources)
    documents, problems = parse_documents(text, file="case.yaml")
    assert not problems, problems
    return latest_of_each(documents)[0]


def _vip(text: str) -> Vip:
    if "/" in text:
        network = ipaddress.ip_network(text)
        return Vip("", str(network.network_address), network)
    return Vip("", canonical_ip(text))


def _waypoint(item: Mapping[str, Any] | None) -> GatewayAddress | None:
    return GatewayAddress(NetworkAddress("", item["ip"]), item["port"]) if item else None


def snapshot_of(
    services: Sequence[Mapping[str, Any]],
    documents: Sequence[Document] = (),
    workloads: Sequence[Workload] = (),
) -> Snapshot:
    """A snapshot of services in the form of the conformance cases (hostname, vips, ports, endpoints ...)."""
    found: list[Service] = []
    pods: dict[str, Workload] = {one.uid: one for one in workloads}
    for item in services:
        namespace, hostname = item["namespace"], item["hostname"]
        ports = {
            port["number"]: ServicePort(
                port["number"], port["target_port"], port["name"], port.get("protocol", "")
            )
            for port in item["ports"]
        }
        found.append(
            Service(
                name=hostname.partition(".")[0],
                namespace=namespace,
                hostname=hostname,
                vips=tuple(_vip(vip) for vip in item["vips"]),
                ports=MappingProxyType(ports),
                waypoint=_waypoint(item.get("waypoint")),
                headless=item.get("headless", False),
                created=item.get("created", ""),
            )
        )
        targets = {port.number: port.target_port for port in ports.values()}
        for endpoint in item["endpoints"]:
            uid = f"Kubernetes//Pod/{endpoint['namespace']}/{endpoint['ip']}"
            known = pods.get(uid)
            pods[uid] = Workload(
                uid=uid,
                name=f"pod-{endpoint['ip']}",
                namespace=endpoint["namespace"],
                addresses=(canonical_ip(endpoint["ip"]),),
                labels=MappingProxyType(dict(endpoint.get("labels", {}))),
                services=MappingProxyType(
                    {**(known.services if known else {}), (namespace, hostname): targets}
                ),
                tunnel_protocol=TunnelProtocol.NONE
                if endpoint.get("protocol") == "TCP"
                else TunnelProtocol.HBONE,
                waypoint=_waypoint(item.get("workload_waypoint")),
            )
    return build_snapshot(workloads=pods.values(), services=found, policies=(), documents=documents)


@pytest.fixture(scope="session")
def make_documents() -> Callable[[Resources], list[Document]]:
    return documents_of


@pytest.fixture(scope="session")
def make_snapshot() -> Callable[..., Snapshot]:
    return snapshot_of
