"""One wrong object per code: what admission refuses, and what it should have warned about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from waypoint.analysis.analyzer import check_document
from waypoint.analysis.report import Report
from waypoint.resources.virtual_service import VirtualServiceResource
from ztun.mesh.document import Document
from ztun.resources.documents import parse_documents, validate
from ztun.routing import Diagnostic

pytestmark = pytest.mark.unit

Documents = Callable[..., list[Document]]


def codes(make_documents: Documents, kind: str, text: str, **metadata: Any) -> dict[str, Diagnostic]:
    group = (
        "gateway.networking.k8s.io" if kind.startswith("Api") or "Route" in kind else "networking.istio.io"
    )
    resource = {
        "apiVersion": f"{group}/v1",
        "kind": kind.removeprefix("Api"),
        "metadata": {"name": "x", "namespace": "default", **metadata},
        "spec": yaml.safe_load(text) or {},
    }
    report = Report()
    for document in make_documents([resource]):
        check_document(document, report)
    return {one.code: one for one in report.diagnostics()}


TCP = "tcp: [{route: [{destination: {host: a.b}}]}]"
VIRTUAL_SERVICES = [
    ("VS-DELEGATE-L4", f"{{{TCP}}}"),
    ("VS-HOST-SYNTAX", f"{{hosts: ['a_b.c'], {TCP}}}"),
    ("VS-HOST-SYNTAX", f"{{hosts: ['a.*.c'], {TCP}}}"),
    ("VS-HOST-SYNTAX", f"{{hosts: ['foo.123'], {TCP}}}"),
    ("VS-HOST-WILD-MESH", f"{{hosts: ['*'], gateways: [mesh, gw], {TCP}}}"),
    ("VS-HOST-DUP", f"{{hosts: [a.b, a.b], {TCP}}}"),
    ("VS-HOST-DUP", f"{{hosts: [x.a.b, '*.a.b'], {TCP}}}"),
    ("VS-NO-ROUTES", "{hosts: [a.b]}"),
    ("VS-GW-SYNTAX", f"{{hosts: [a.b], gateways: [gw, '/x'], {TCP}}}"),
    ("VS-GW-SYNTAX", f"{{hosts: [a.b], gateways: ['*/x'], {TCP}}}"),
    ("VS-GW-LEGACY", f"{{hosts: [a.b], gateways: [gw.ns.svc.cluster.local], {TCP}}}"),
    ("VS-EXPORTTO", f"{{hosts: [a.b], exportTo: ['.', default], {TCP}}}"),
    ("VS-EXPORTTO", f"{{hosts: [a.b], exportTo: ['*', ns], {TCP}}}"),
    ("VS-EXPORTTO", f"{{hosts: [a.b], exportTo: [ns, ns], {TCP}}}"),
    ("TCP-MATCH-NULL", "{hosts: [a.b], tcp: [{match: [null], route: [{destination: {host: a.b}}]}]}"),
    (
        "TCP-SUBNET",
        "{hosts: [a.b], tcp: [{match: [{destinationSubnets: [10.0.0.0/33]}], route: [{destination: {host: a}}]}]}",
    ),
    ("TCP-PORT", "{hosts: [a.b], tcp: [{match: [{port: -1}], route: [{destination: {host: a}}]}]}"),
    (
        "TCP-LABELS",
        "{hosts: [a.b], tcp: [{match: [{sourceLabels: {app: 'a b'}}], route: [{destination: {host: a}}]}]}",
    ),
    ("TCP-NO-ROUTE", "{hosts: [a.b], tcp: [{match: [{port: 1}]}]}"),
    (
        "TCP-NAMESPACE-SYNTAX",
        "{hosts: [a.b], tcp: [{match: [{sourceNamespace: A_b}], route: [{destination: {host: a}}]}]}",
    ),
    ("TLS-NO-MATCH", "{hosts: [a.b], tls: [{route: [{destination: {host: a}}]}]}"),
    ("TLS-NO-SNI", "{hosts: [a.b], tls: [{match: [{port: 1}], route: [{destination: {host: a}}]}]}"),
    (
        "TLS-SNI-SYNTAX",
        "{hosts: [a.b], tls: [{match: [{sniHosts: ['a.*.b']}], route: [{destination: {host: a}}]}]}",
    ),
    (
        "TLS-SNI-IP",
        "{hosts: [a.b], tls: [{match: [{sniHosts: [1.2.3.4]}], route: [{destination: {host: a}}]}]}",
    ),
    (
        "TLS-SNI-NOT-IN-HOSTS",
        "{hosts: ['*.a.b'], tls: [{match: [{sniHosts: [a.b]}], route: [{destination: {host: a}}]}]}",
    ),
    ("TLS-NO-ROUTE", "{hosts: [a.b], tls: [{match: [{sniHosts: [a.b]}]}]}"),
    ("DST-MISSING", "{hosts: [a.b], tcp: [{route: [null]}]}"),
    ("DST-HOST-SYNTAX", "{hosts: [a.b], tcp: [{route: [{destination: {host: '*'}}]}]}"),
    ("DST-HOST-SYNTAX", "{hosts: [a.b], tcp: [{route: [{destination: {host: ''}}]}]}"),
    ("DST-SUBSET-NAME", "{hosts: [a.b], tcp: [{route: [{destination: {host: a, subset: v1.0}}]}]}"),
    ("DST-PORT-NUMBER", "{hosts: [a.b], tcp: [{route: [{destination: {host: a, port: {number: 70000}}}]}]}"),
    ("WT-NEGATIVE", "{hosts: [a.b], tcp: [{route: [{destination: {host: a}, weight: -1}]}]}"),
    ("WT-TOTAL-ZERO", "{hosts: [a.b], tcp: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]}"),
    (
        "IST0130",
        "{hosts: [a.b], tcp: [{match: [{}], route: [{destination: {host: a}}]}, {route: [{destination: {host: b}}]}]}",
    ),
    (
        "IST0131",
        (
            "{hosts: [a.b], tcp: [{match: [{port: 1}], route: [{destination: {host: a}}]}, "
            "{match: [{port: 1, sourceNamespace: x}], route: [{destination: {host: b}}]}]}"
        ),
    ),
]

POLICY = "host: a, trafficPolicy: "
DESTINATION_RULES = [
    ("DR-HOST", "{host: 'a b'}"),
    ("DR-SUBSET-NAME", "{host: a, subsets: [{name: ''}]}"),
    ("DR-SUBSET-NAME", "{host: a, subsets: [{name: a.b}]}"),
    ("DR-SUBSET-DUP", "{host: a, subsets: [{name: x}, {name: x}]}"),
    ("DR-LABELS", "{host: a, subsets: [{name: x, labels: {'a b': c}}]}"),
    ("DR-SELECTOR-EMPTY", "{host: a, workloadSelector: {}}"),
    ("DR-SELECTOR-EXPORT", "{host: a, exportTo: [ns], workloadSelector: {matchLabels: {a: b}}}"),
    ("TP-EMPTY", f"{{{POLICY}{{}}}}"),
    ("TP-PORT-MISSING", f"{{{POLICY}{{portLevelSettings: [{{port: {{number: 80}}}}]}}}}"),
    ("TP-TUNNEL-PROXY", f"{{{POLICY}{{proxyProtocol: {{version: V3}}}}}}"),
    ("TP-TUNNEL-PROXY", f"{{{POLICY}{{tunnel: {{protocol: GET, targetHost: a.b, targetPort: 1}}}}}}"),
    ("TP-TUNNEL-PROXY", f"{{{POLICY}{{tunnel: {{targetHost: '', targetPort: 0}}}}}}"),
    ("TP-NO-EFFECT", f"{{{POLICY}{{connectionPool: {{http: {{maxRetries: 1}}}}}}}}"),
    ("CP-EMPTY", f"{{{POLICY}{{connectionPool: {{}}}}}}"),
    ("CP-NEGATIVE", f"{{{POLICY}{{connectionPool: {{http: {{maxRetries: -1}}}}}}}}"),
    ("DURATION", f"{{{POLICY}{{connectionPool: {{tcp: {{connectTimeout: soon}}}}}}}}"),
    ("DURATION", f"{{{POLICY}{{outlierDetection: {{interval: 0s}}}}}}"),
    ("OD-PERCENT", f"{{{POLICY}{{outlierDetection: {{maxEjectionPercent: -1}}}}}}"),
    ("OD-SPLIT", f"{{{POLICY}{{outlierDetection: {{consecutiveLocalOriginFailures: 1}}}}}}"),
    ("OD-DEPRECATED", f"{{{POLICY}{{outlierDetection: {{consecutiveErrors: 1}}}}}}"),
    (
        "LB-MAGLEV",
        f"{{{POLICY}{{loadBalancer: {{consistentHash: {{useSourceIp: true, maglev: {{tableSize: 9}}}}}}}}}}",
    ),
    ("LB-HASH-COOKIE", f"{{{POLICY}{{loadBalancer: {{consistentHash: {{httpCookie: {{ttl: 1s}}}}}}}}}}"),
    (
        "LB-LOCALITY-ZONE",
        f"{{{POLICY}{{loadBalancer: {{localityLbSetting: {{}}, zoneAwareLbSetting: {{}}}}}}}}",
    ),
    (
        "LB-LOCALITY",
        f"{{{POLICY}{{loadBalancer: {{localityLbSetting: {{failover: [{{from: a, to: a}}]}}}}}}}}",
    ),
    (
        "LB-LOCALITY",
        f"{{{POLICY}{{loadBalancer: {{localityLbSetting: {{distribute: [{{from: a, to: {{a: 50}}}}]}}}}}}}}",
    ),
    (
        "LB-FAILOVER-NO-OD",
        f"{{{POLICY}{{loadBalancer: {{localityLbSetting: {{failover: [{{from: a, to: b}}]}}}}}}}}",
    ),
    ("LB-WARMUP", f"{{{POLICY}{{loadBalancer: {{simple: ROUND_ROBIN, warmup: {{minimumPercent: 5}}}}}}}}"),
    ("LB-CHOICE", f"{{{POLICY}{{loadBalancer: {{simple: RANDOM, consistentHash: {{useSourceIp: true}}}}}}}}"),
    ("TLS-CLIENT-CERTIFICATE", f"{{{POLICY}{{tls: {{mode: MUTUAL, clientCertificate: c}}}}}}"),
    ("TLS-CLIENT-UNEXPECTED", f"{{{POLICY}{{tls: {{mode: ISTIO_MUTUAL, caCertificates: c}}}}}}"),
    ("TLS-CLIENT-SOURCE", f"{{{POLICY}{{tls: {{mode: SIMPLE, credentialName: a, caCertificates: c}}}}}}"),
    (
        "TLS-CLIENT-VERIFY",
        f"{{{POLICY}{{tls: {{mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]}}}}}}",
    ),
    ("IST0128", f"{{{POLICY}{{tls: {{mode: SIMPLE}}}}}}"),
    ("IST0129", f"{{{POLICY}{{portLevelSettings: [{{port: {{number: 1}}, tls: {{mode: SIMPLE}}}}]}}}}"),
]

SERVER = "port: {number: 80, name: a, protocol: TCP}"
GATEWAYS = [
    ("GW-NO-SERVER", "{selector: {a: b}}"),
    ("GW-LABELS", "{selector: {'a b': c}}"),
    ("GW-PORT-NUMBER", "{servers: [{hosts: ['*']}]}"),
    ("GW-PORT-NAME", "{servers: [{port: {number: 80, protocol: TCP}, hosts: ['*']}]}"),
    ("GW-PORT-NAME-DUP", f"{{servers: [{{{SERVER}, hosts: ['*']}}, {{{SERVER}, hosts: ['*']}}]}}"),
    ("GW-PROTOCOL", "{servers: [{port: {number: 80, name: a, protocol: UDP}, hosts: ['*']}]}"),
    ("GW-HOST-MISSING", f"{{servers: [{{{SERVER}}}]}}"),
    ("GW-HOST-SYNTAX", f"{{servers: [{{{SERVER}, hosts: ['a.*']}}]}}"),
    ("GW-HOST-SHORT", f"{{servers: [{{{SERVER}, hosts: [a]}}]}}"),
    ("GW-HOST-PARTIAL-WILD", f"{{servers: [{{{SERVER}, hosts: ['*bar.com']}}]}}"),
    ("GW-HOST-NS", f"{{servers: [{{{SERVER}, hosts: ['A_b/foo.bar']}}]}}"),
    ("GW-TLS-MISSING", "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*']}]}"),
    ("GW-TLS-UNEXPECTED", f"{{servers: [{{{SERVER}, hosts: ['*'], tls: {{mode: PASSTHROUGH}}}}]}}"),
    (
        "GW-TLS-MATERIAL",
        "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*'], tls: {mode: SIMPLE}}]}",
    ),
    (
        "GW-TLS-MATERIAL",
        (
            "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*'], "
            "tls: {mode: MUTUAL, serverCertificate: c, privateKey: k}}]}"
        ),
    ),
    (
        "GW-TLS-MODE",
        "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*'], tls: {mode: ODD}}]}",
    ),
    (
        "GW-TLS-PASSTHROUGH",
        (
            "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*'], "
            "tls: {mode: PASSTHROUGH, credentialName: c}}]}"
        ),
    ),
    ("GW-REDIRECT", f"{{servers: [{{{SERVER}, hosts: ['*'], tls: {{httpsRedirect: true}}}}]}}"),
    ("GW-BIND", f"{{servers: [{{{SERVER}, hosts: ['*'], bind: here}}]}}"),
    (
        "GW-TARGETPORT",
        "{servers: [{port: {number: 80, name: a, protocol: TCP, targetPort: 8080}, hosts: ['*']}]}",
    ),
    (
        "GW-CIPHER",
        (
            "{servers: [{port: {number: 1, name: a, protocol: TLS}, hosts: ['*'], "
            "tls: {mode: SIMPLE, credentialName: c, cipherSuites: [ROT13]}}]}"
        ),
    ),
]
API_OBJECTS = [
    ("ApiGateway", "GAPI-WAYPOINT-LISTENER", "{gatewayClassName: istio-waypoint, listeners: []}"),
    ("TCPRoute", "GAPI-RULES", "{rules: []}"),
    ("TCPRoute", "GAPI-RULES", "{rules: [{backendRefs: [{name: a, port: 1, weight: 2000000}]}]}"),
    ("TCPRoute", "GAPI-RULES", "{rules: [{backendRefs: [{name: a}]}]}"),
]
ALL = [
    *(("VirtualService", code, text) for code, text in VIRTUAL_SERVICES),
    *(("DestinationRule", code, text) for code, text in DESTINATION_RULES),
    *(("Gateway", code, text) for code, text in GATEWAYS),
    *API_OBJECTS,
]


@pytest.mark.parametrize(
    ("kind", "code", "text"), ALL, ids=[f"{code}-{at}" for at, (_, code, _) in enumerate(ALL)]
)
def test_a_wrong_object_has_its_code(make_documents: Documents, kind: str, code: str, text: str) -> None:
    found = codes(make_documents, kind, text)
    assert code in found
    assert found[code].message


def test_a_gateway_name_must_be_a_label(make_documents: Documents) -> None:
    text = f"{{servers: [{{{SERVER}, hosts: ['*']}}]}}"
    assert "GW-NAME" in codes(make_documents, "Gateway", text, name="a.b")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("VirtualService", f"{{hosts: [a.b, '*.c.d', 10.0.0.1], gateways: [mesh, ns/gw, ./gw], {TCP}}}"),
        ("VirtualService", "{http: [{route: []}]}"),
        ("DestinationRule", f"{{{POLICY}{{loadBalancer: {{simple: LEAST_CONN}}, tls: {{mode: DISABLE}}}}}}"),
        ("DestinationRule", f"{{{POLICY}{{outlierDetection: {{interval: 1m30s, baseEjectionTime: 500ms}}}}}}"),
        ("Gateway", ("{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*'], "
                    "tls: {httpsRedirect: true}}]}")),
        ("Gateway", "{servers: [{port: {number: 0, name: a, protocol: TCP}, bind: 'unix:///run/x', hosts: ['*']}]}"),
    ],
)  # fmt: skip
def test_a_right_object_has_no_findings(make_documents: Documents, kind: str, text: str) -> None:
    assert codes(make_documents, kind, text) == {}


def test_a_finding_has_its_place_in_the_file() -> None:
    text = (
        "apiVersion: networking.istio.io/v1\n"
        "kind: VirtualService\n"
        "metadata: {name: echo, namespace: default}\n"
        "spec:\n"
        "  hosts: [a.b]\n"
        "  tcp:\n"
        "  - match:\n"
        "    - port: 70000\n"
        "    route:\n"
        "    - destination: {host: a.b}\n"
    )
    (document,), _ = parse_documents(text, file="mesh.yaml")
    report = Report()
    check_document(document, report)
    (problem,) = report.problems()
    assert str(problem.location) == "mesh.yaml:8:7"
    assert str(problem).startswith(
        "mesh.yaml:8:7 VirtualService default/echo spec.tcp[0].match[0].port: 70000"
    )


@pytest.mark.parametrize(
    "match",
    [
        "{sourceLabels: null}",
        "{sourceLabel: {a: b}}",
        "{sourceSubnet: 10.0.0.0/8}",
        "{port: '80'}",
        "{port: true}",
    ],
)
def test_what_could_widen_a_match_is_refused(make_documents: Documents, match: str) -> None:
    """A key whose value was commented out, or is misspelt, must not turn the block into a catch-all."""
    spec = yaml.safe_load(
        f"{{hosts: [a.b], tcp: [{{match: [{match}], route: [{{destination: {{host: a}}}}]}}]}}"
    )
    (document,) = make_documents(
        [
            {
                "apiVersion": "networking.istio.io/v1",
                "kind": "VirtualService",
                "metadata": {"name": "x", "namespace": "default"},
                "spec": spec,
            }
        ]
    )
    model, problems = validate(VirtualServiceResource, document)
    assert model is None
    assert problems
