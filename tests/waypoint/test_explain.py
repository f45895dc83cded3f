"""Explanations: the page's examples, and the decision of the data path with its reasons."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from waypoint.analysis.configuration import Configuration, read_configuration
from waypoint.analysis.stand_ins import with_stand_ins
from waypoint.explain import Explanation, Question, engine_named, explain
from ztun.errors import ConfigError

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[2] / "compose" / "examples"
MESH = ("corrected/echoserver.yaml", "corrected/telnet.yaml")
DIALLED = "echo-server.default.svc.cluster.local:19000"


def configuration(*names: str) -> Configuration:
    return read_configuration([EXAMPLES / name for name in (*MESH, *names)])


def ask(names: Sequence[str], client: str, engine: str, *, via: str = "", to: str = DIALLED) -> Explanation:
    (found,) = explain(configuration(*names), Question(to, client, via), [engine])
    return found


def reached(found: Explanation) -> str:
    """What the servers of the example would answer."""
    if found.decision.refused or found.decision.chosen is None:
        return "closed"
    words = {"echo-server-2": "hello-2", "echo-server-gray": "hello-gray", "echo-server-prod": "hello"}
    owners = {one.workload.workload_name for one in found.decision.chosen.endpoints}
    return " or ".join(sorted(words[owner] for owner in owners))


def codes(found: Explanation) -> set[str]:
    return {one.code for one in (*found.decision.diagnostics, *found.hints)}


CLIENT, CLIENT_2, FOO = "default/telnet-client", "default/telnet-client-2", "foo/telnet-client-foo"
PAGE = [
    ("as-printed/destinationSubnets.yaml", CLIENT, "hello", "hello", "AMB-MATCH-SUBNETS"),
    ("as-printed/port.yaml", CLIENT, "hello-2", "hello", "AMB-MATCH-PORT"),
    ("as-printed/sourceLabels.yaml", CLIENT, "hello-2", "hello", "AMB-MATCH-LABELS"),
    ("as-printed/sourceLabels.yaml", CLIENT_2, "hello", "hello", "AMB-MATCH-LABELS"),
    ("as-printed/source-namespace.yaml", FOO, "hello-2", "hello", "AMB-MATCH-NAMESPACE"),
    ("as-printed/source-namespace.yaml", CLIENT, "hello", "hello", "AMB-MATCH-NAMESPACE"),
]


@pytest.mark.parametrize(("file", "client", "sidecar", "ambient", "code"), PAGE)
def test_the_attributes_in_both_modes(file: str, client: str, sidecar: str, ambient: str, code: str) -> None:
    assert reached(ask([file], client, "sidecar")) == sidecar
    found = ask([file], client, "ambient")
    assert reached(found) == ambient
    assert code in codes(found)


def test_destination_subnets_compare_the_dialled_address(tmp_path: Path) -> None:
    """With the Service's address inside the network, as on the page's cluster, the rule takes the connection."""
    text = (
        (EXAMPLES / "as-printed" / "destinationSubnets.yaml")
        .read_text()
        .replace("192.168.0.0/16", "240.240.0.0/16")
    )
    (tmp_path / "vs.yaml").write_text(text)
    found = read_configuration([*(EXAMPLES / name for name in MESH), tmp_path])
    (answer,) = explain(found, Question(DIALLED, CLIENT), ["sidecar"])
    assert reached(answer) == "hello-2"


@pytest.mark.parametrize("engine", ["ambient", "sidecar"])
@pytest.mark.parametrize(
    ("gateway", "answer"), [("ingressgateway-1", "hello"), ("ingressgateway-2", "hello-2")]
)
def test_the_gateways(engine: str, gateway: str, answer: str) -> None:
    names = [
        f"corrected/{name}.yaml" for name in ("ingressgateway-1", "ingressgateway-2", "ingressgateway-vs")
    ]
    assert reached(ask(names, "", engine, via=f"istio-system/{gateway}")) == answer
    inside = ask(names, CLIENT, engine)
    assert reached(inside) == "hello"
    assert "HOP-MISMATCH" in codes(inside)


@pytest.mark.parametrize("engine", ["ambient", "sidecar"])
def test_the_weights_as_printed_and_corrected(engine: str) -> None:
    backup = "corrected/echo-server-backup.yaml"
    printed = ask([backup, "as-printed/echoserver-vs.yaml", "as-printed/echoserver-dr.yaml"], CLIENT, engine)
    assert reached(printed) == "hello or hello-gray"
    assert "PROTO-HTTP-ON-TCP" in codes(printed)
    half = ask([backup, "corrected/echoserver-vs.yaml", "as-printed/echoserver-dr.yaml"], CLIENT, engine)
    assert reached(half) == "closed"
    assert "DST-NOSUBSET" in codes(half)
    right = ask([backup, "corrected/echoserver-vs.yaml", "corrected/echoserver-dr.yaml"], CLIENT, engine)
    assert [(one.subset, float(one.share)) for one in right.decision.destinations] == [
        ("prod", 0.8),
        ("gray", 0.2),
    ]
    split = ask([backup, "corrected/echo-split.yaml"], CLIENT, engine)
    assert [float(one.share) for one in split.decision.destinations] == [0.8, 0.2]


def test_the_gateway_api_route_says_the_same() -> None:
    names = ["corrected/echo-server-backup.yaml", "corrected/echo-split.yaml", "corrected/tcproute.yaml"]
    both = configuration(*names)
    routes_only = [one for one in both.documents if one.kind != "VirtualService"]
    (found,) = explain(
        Configuration(routes_only, (), both.snapshot, both.index), Question(DIALLED, CLIENT), ["ambient"]
    )
    assert str(found.decision.matched) == "default/echo-split tcp[0]"
    assert [float(one.share) for one in found.decision.destinations] == [0.8, 0.2]


def test_every_virtual_service_rule_and_block_is_told_with_its_reason() -> None:
    found = ask(["as-printed/source-namespace.yaml", "as-printed/sourceLabels.yaml"], CLIENT, "sidecar")
    told = {step.subject: step.outcome for step in found.decision.trace}
    assert told["VirtualService default/source-namespace"] == "considered"
    assert "sourceNamespace foo is not default" in told["tcp[0].match[0]"]
    assert "takes every address" in told["tcp[1]"]


def test_the_explanation_is_what_the_data_path_decides() -> None:
    found = ask(["corrected/echo-server-backup.yaml", "corrected/echo-split.yaml"], CLIENT, "sidecar")
    documents, added = with_stand_ins(
        configuration("corrected/echo-server-backup.yaml", "corrected/echo-split.yaml").documents
    )
    assert added
    from waypoint.analysis.configuration import configuration_of

    router = engine_named("sidecar").router(configuration_of(documents).snapshot)
    decision = router.decide(found.connection, found.hop, random.Random(0))
    assert decision.destinations == found.decision.destinations
    assert decision.chosen == found.decision.chosen


def test_the_server_name_of_a_tls_client_is_that_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: default}\n"
        "spec:\n  selector: {istio: g}\n  servers:\n"
        "  - {port: {number: 443, name: t, protocol: TLS}, hosts: ['*.x.com'], tls: {mode: PASSTHROUGH}}\n"
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: default}\n"
        "spec:\n  hosts: [a.x.com]\n  gateways: [g]\n"
        "  tls: [{match: [{sniHosts: [a.x.com]}], route: [{destination: {host: echo-server-2}}]}]\n"
    )
    found = read_configuration([*(EXAMPLES / name for name in MESH), tmp_path])
    (named,) = explain(found, Question("a.x.com:443", via="default/g"), ["ambient"])
    assert reached(named) == "hello-2"
    assert named.connection.server_name == "a.x.com"
    (other,) = explain(found, Question("a.x.com:443", via="default/g", server_name="b.x.com"), ["ambient"])
    assert reached(other) == "closed"


@pytest.mark.parametrize(
    ("question", "code", "hint"),
    [
        (Question("echo-server", CLIENT), "bad_target", "HOST:PORT"),
        (Question("ecko-server:19000", CLIENT), "unknown_host", "did you mean"),
        (Question(DIALLED, "default/telnet-clien"), "unknown_workload", "default/telnet-client"),
        (Question(DIALLED, via="istio-system/none"), "unknown_gateway", "gateways: none"),
    ],
)
def test_a_question_that_cannot_be_asked(question: Question, code: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        explain(configuration(), question, ["ambient"])
    assert raised.value.code == code
    assert hint in raised.value.hint
