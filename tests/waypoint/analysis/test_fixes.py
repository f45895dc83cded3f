"""Corrected documents: valid, without the finding, and only where the intention is plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from waypoint.analysis.analyzer import analyze
from waypoint.analysis.configuration import read_configuration
from waypoint.analysis.fixes import Corrected, corrected, yaml_of

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[3] / "compose" / "examples"
SERVERS = [EXAMPLES / "corrected" / "echoserver.yaml", EXAMPLES / "corrected" / "echo-server-backup.yaml"]


def fix(tmp_path: Path, text: str) -> tuple[Corrected, list[dict[str, Any]]]:
    path = tmp_path / "user.yaml"
    path.write_text(text)
    result = corrected(read_configuration([*SERVERS, path]))
    return result, [one for one in yaml.safe_load_all(yaml_of(result)) if one]


def test_the_weighted_example_as_printed_becomes_the_corrected_one() -> None:
    printed = [EXAMPLES / "as-printed" / name for name in ("echoserver-vs.yaml", "echoserver-dr.yaml")]
    result = corrected(read_configuration([*SERVERS, *printed]))
    service, rule = yaml.safe_load_all(yaml_of(result))
    wanted = yaml.safe_load((EXAMPLES / "corrected" / "echoserver-vs.yaml").read_text())
    split = {one["destination"]["subset"]: one["weight"] for one in service["spec"]["tcp"][0]["route"]}
    assert split == {one["destination"]["subset"]: one["weight"] for one in wanted["spec"]["tcp"][0]["route"]}
    assert "http" not in service["spec"]
    assert service["metadata"]["namespace"] == "default"
    assert rule["spec"]["host"] == "echo-server.default.svc.cluster.local"
    assert [str(one) for one in analyze(result.configuration) if one.severity != "info"] == []


def virtual_service(spec: str) -> str:
    version = "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
    return f"{version}metadata: {{name: echo, namespace: default}}\nspec: {spec}\n"


TO = "route: [{destination: {host: echo-server-2}}]"


@pytest.mark.parametrize(
    ("spec", "path", "value"),
    [
        (f"{{hosts: [echo-server], tcp: [{{match: [{{port: 9000}}], {TO}}}]}}", "tcp.0.match.0.port", 19000),
        (
            f"{{hosts: [echo-server], tcp: [{{match: [{{destinationSubnets: [192.168.1.1/16]}}], {TO}}}]}}",
            "tcp.0.match.0.destinationSubnets.0",
            "192.168.0.0/16",
        ),
        (
            f"{{hosts: [echo-server], tcp: [{{match: [{{gateways: [gw]}}], {TO}}}]}}",
            "gateways",
            ["mesh", "gw"],
        ),
        (
            f"{{hosts: [echo-server], gateways: [mesh, gw.ns.svc.cluster.local], tcp: [{{{TO}}}]}}",
            "gateways.1",
            "ns/gw",
        ),
        (
            "{hosts: [echo-server], tcp: [{route: [{destination: {host: echo-serve-2}}]}]}",
            "tcp.0.route.0.destination.host",
            "echo-server-2.default.svc.cluster.local",
        ),
    ],
)
def test_a_mistake_is_put_right(tmp_path: Path, spec: str, path: str, value: object) -> None:
    _, (document,) = fix(tmp_path, virtual_service(spec))
    found: Any = document["spec"]
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else found[part]
    assert found == value


def test_missing_subsets_are_made_of_the_version_label(tmp_path: Path) -> None:
    routes = (
        "{destination: {host: echo-server, subset: gray}}, {destination: {host: echo-server, subset: none}}"
    )
    result, found = fix(tmp_path, virtual_service(f"{{hosts: [echo-server], tcp: [{{route: [{routes}]}}]}}"))
    (rule,) = [one for one in found if one["kind"] == "DestinationRule"]
    assert rule["spec"] == {
        "host": "echo-server.default.svc.cluster.local",
        "subsets": [{"name": "gray", "labels": {"version": "gray"}}],
    }
    assert "subset gray added" in result.changes["DestinationRule default/echo-server"][0]


@pytest.mark.parametrize(
    "rule",
    [
        "{match: [{uri: {prefix: /a}}], route: [{destination: {host: echo-server}}]}",
        "{route: [{destination: {host: echo-server}}], timeout: 1s}",
        "{redirect: {uri: /b}}",
    ],
)
def test_http_rules_that_need_http_are_left_alone(tmp_path: Path, rule: str) -> None:
    result, found = fix(tmp_path, virtual_service(f"{{hosts: [echo-server], http: [{rule}]}}"))
    assert found == []
    assert "PROTO-HTTP-ON-TCP" in {one.code for one in analyze(result.configuration)}


def test_a_host_that_is_not_close_to_anything_is_left_alone(tmp_path: Path) -> None:
    spec = "{hosts: [echo-server], tcp: [{route: [{destination: {host: reviews.shop.example.com}}]}]}"
    assert fix(tmp_path, virtual_service(spec))[1] == []


def test_what_was_changed_stands_above_the_document(tmp_path: Path) -> None:
    spec = f"{{hosts: [echo-server], tcp: [{{match: [{{port: 9000}}], {TO}}}]}}"
    result, _ = fix(tmp_path, virtual_service(spec))
    assert yaml_of(result).startswith("# fixed PORT-NOT-SERVICE: port 9000 is the targetPort of 19000\n")
