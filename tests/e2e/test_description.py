"""``docker-compose.yaml`` and the documents of its mesh say the same. Read, not run."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import yaml

from tests.e2e.image import ROOT
from ztun.lab.composed import ComposedMesh
from ztun.lab.machine import read_plan
from ztun.lab.page_mesh import CANARY, CLIENTS, GATEWAY_NAMESPACE, GATEWAYS, MODES, name_in
from ztun.lab.topology import PodPlan

pytestmark = pytest.mark.unit

COMPOSE = ROOT / "compose"
NETWORK = ipaddress.IPv4Network("10.213.0.0/16")


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "docker-compose.yaml").read_text())[
        "services"
    ]
    return found


def address(service: dict[str, Any]) -> str:
    return str(service["networks"]["mesh"]["ipv4_address"])


def option(service: dict[str, Any], name: str) -> str:
    return str(service["command"][service["command"].index(name) + 1])


def test_a_pod_that_is_a_container_has_its_address(services: dict[str, dict[str, Any]]) -> None:
    plan = read_plan(COMPOSE / "mesh", NETWORK)
    containers = {pod.name: pod.ip for pod in plan.pods if pod.node == "compose"}
    assert containers == {name: address(services[name]) for name in containers}
    expected = {name_in(mode, gateway) for mode in MODES for gateway in GATEWAYS} | {"waypoint"}
    assert containers.keys() == expected | {name_in("sidecar", name) for _, name in CLIENTS}


@pytest.mark.parametrize("node", ["node-a", "node-b"])
def test_the_pods_of_a_node_are_on_its_network(services: dict[str, dict[str, Any]], node: str) -> None:
    network = ipaddress.IPv4Network(option(services[node], "--pods"))
    assert network.subnet_of(NETWORK)
    pods = read_plan(COMPOSE / "mesh", NETWORK).pods_on(node)
    assert pods
    assert all(ipaddress.IPv4Address(pod.ip) in network for pod in pods)
    machines = [address(one) for one in services.values() if isinstance(one.get("networks"), dict)]
    assert not any(ipaddress.IPv4Address(ip) in network for ip in machines)


def test_everybody_whom_the_examples_name_is_there() -> None:
    plan = read_plan(COMPOSE / "mesh", NETWORK)
    for mode in MODES:
        for namespace, name in CLIENTS:
            assert plan.pod(namespace, name_in(mode, name)).mode == mode
        for gateway in GATEWAYS:
            plan.pod(GATEWAY_NAMESPACE, name_in(mode, gateway))


def test_the_place_of_the_canary_is_free_and_on_its_node(services: dict[str, dict[str, Any]]) -> None:
    (given,) = [one for one in services["check"]["command"] if one.startswith("--canary=")]
    node, _, ip = given.removeprefix("--canary=").partition("/")
    assert ipaddress.IPv4Address(ip) in ipaddress.IPv4Network(option(services[node], "--pods"))
    assert ip not in {pod.ip for pod in read_plan(COMPOSE / "mesh", NETWORK).pods}
    mesh = ComposedMesh(PodPlan("default", CANARY, CANARY, node, ip, "echo-server"))
    assert mesh.objects(canary=False) == []
    (pod,) = mesh.objects(canary=True)
    assert pod["metadata"]["labels"] == {"app": "echo-server", "version": "gray"}
    assert (pod["spec"]["nodeName"], pod["status"]["podIP"]) == (node, ip)


def test_a_captured_client_is_not_started_again_alone(services: dict[str, dict[str, Any]]) -> None:
    """Its sidecar would stay behind in the old namespace, and it would connect from one that is not captured."""
    captured = {
        service["network_mode"].removeprefix("service:")
        for service in services.values()
        if service.get("environment", {}).get("ZTUN_CAPTURE")
    }
    assert captured == {name_in("sidecar", name) for _, name in CLIENTS}
    assert {services[name]["restart"] for name in captured} == {"no"}


def test_nothing_is_privileged_and_nothing_can_be_written(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert "privileged" not in service, name
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert set(service.get("cap_add", ())) <= {
            *("NET_ADMIN", "SYS_ADMIN"),  # who captures
            *("SETUID", "SETGID"),  # who gives up root
            *("CHOWN", "DAC_OVERRIDE"),  # who sets up, without a network
        }, name
