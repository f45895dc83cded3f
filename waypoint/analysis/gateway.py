"""Gateway of Istio: servers, hosts, TLS."""

from __future__ import annotations

from collections.abc import Sequence

from waypoint.analysis.report import Report
from waypoint.analysis.syntax import is_host_or_ip, is_label, is_namespace, label_error
from waypoint.resources.gateway import GatewaySpec, ServerSpec, ServerTlsSpec
from waypoint.routes.names import is_ip
from ztun.mesh.document import Document, FieldPath

MAX_PORT = 65_535
PROTOCOLS = frozenset(
    {
        "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "GRPC-WEB-TEXT", "HTTPS", "TLS", "TCP", "MONGO", "REDIS", "MYSQL",
        "HTTP_PROXY", "HBONE", "DOUBLE_HBONE",
    }
)  # fmt: skip
HTTP_SERVERS = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "GRPC-WEB-TEXT"})
TLS_SERVERS = frozenset({"HTTPS", "TLS"})
MODES = frozenset({"PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"})
CIPHERS = frozenset(
    {
        "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA",
        "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA",
    }
)  # fmt: skip


def check_gateway(document: Document, spec: GatewaySpec, report: Report) -> None:
    """All findings about one Gateway by itself."""
    if not is_label(document.name):
        report.add(document, "GW-NAME", ("metadata", "name"), f"{document.name!r} is no label")
    if not spec.servers:
        report.add(document, "GW-NO-SERVER", ("spec", "servers"), "there is no server", "add one")
    error = label_error(spec.selector)
    if error:
        report.add(document, "GW-LABELS", ("spec", "selector"), error)
    names: set[str] = set()
    for index, server in enumerate(spec.servers):
        _server(document, ("spec", "servers", index), server, names, report)


def _server(document: Document, path: FieldPath, server: ServerSpec, names: set[str], report: Report) -> None:
    port = server.port
    protocol = port.protocol.upper() if port else ""
    unix = server.bind.startswith("unix://")
    if server.bind and not unix and not is_ip(server.bind):
        message = f"{server.bind!r} is neither an IP address nor unix://PATH"
        report.add(document, "GW-BIND", (*path, "bind"), message)
    if port is None:
        report.add(document, "GW-PORT-NUMBER", path, "the server has no port", "add port")
    else:
        at = (*path, "port")
        if unix and port.number:
            report.add(document, "GW-PORT-NUMBER", (*at, "number"), "a unix socket has no port", "remove it")
        elif not unix and not 0 < port.number <= MAX_PORT:
            report.add(document, "GW-PORT-NUMBER", (*at, "number"), f"{port.number} is no port", "1 to 65535")
        if not port.name:
            report.add(document, "GW-PORT-NAME", at, "the port has no name", "add name")
        elif port.name in names:
            message = f"port name {port.name} occurs twice"
            report.add(document, "GW-PORT-NAME-DUP", (*at, "name"), message, "use another name")
        names.add(port.name)
        if protocol not in PROTOCOLS:
            message = f"{port.protocol!r} is no protocol of a gateway"
            report.add(document, "GW-PROTOCOL", (*at, "protocol"), message, "e.g. TCP, TLS, HTTP")
        if port.target_port is not None:
            message = "targetPort is not for servers; it comes from the gateway's Service"
            report.add(document, "GW-TARGETPORT", (*at, "targetPort"), message, "remove it")
    if not server.hosts:
        report.add(document, "GW-HOST-MISSING", path, "the server has no hosts", "add hosts, e.g. '*'")
    _hosts(document, (*path, "hosts"), server.hosts, report)
    _tls(document, path, server, protocol, report)


def _hosts(document: Document, path: FieldPath, hosts: Sequence[str], report: Report) -> None:
    for index, text in enumerate(hosts):
        at = (*path, index)
        namespace, slash, host = text.partition("/")
        if not slash:
            host = text
        elif namespace not in ("*", ".") and not is_namespace(namespace):
            message = f"{namespace!r} is no namespace"
            report.add(document, "GW-HOST-NS", at, message, "use a namespace, '.' or '*'")
        if host == "*":
            continue
        if host.startswith("*") and not host.startswith("*."):
            message = f"{host} is a partial wildcard"
            report.add(document, "GW-HOST-PARTIAL-WILD", at, message, "use *.NAME")
        elif not is_host_or_ip(host):
            report.add(document, "GW-HOST-SYNTAX", at, f"{host!r} is no host")
        elif "." not in host and not is_ip(host):
            message = f"{host} is a short name"
            report.add(document, "GW-HOST-SHORT", at, message, "write the full name")


def _tls(document: Document, path: FieldPath, server: ServerSpec, protocol: str, report: Report) -> None:
    tls, at = server.tls, (*path, "tls")
    if protocol in TLS_SERVERS and tls is None:
        message = f"a {protocol} server needs tls"
        report.add(document, "GW-TLS-MISSING", path, message, "add tls.mode, e.g. PASSTHROUGH")
    if tls is None:
        return
    if protocol not in TLS_SERVERS:
        only_redirect = protocol in HTTP_SERVERS and tls.model_fields_set <= {"https_redirect"}
        if not only_redirect:
            message = f"tls on a {protocol or 'protocol-less'} server has no effect"
            report.add(document, "GW-TLS-UNEXPECTED", at, message, "use protocol TLS or HTTPS, or remove it")
    if tls.https_redirect and protocol not in HTTP_SERVERS:
        message = "httpsRedirect works on HTTP servers only"
        report.add(document, "GW-REDIRECT", (*at, "httpsRedirect"), message)
    if tls.mode not in MODES:
        report.add(document, "GW-TLS-MODE", (*at, "mode"), f"{tls.mode!r} is no mode", "e.g. SIMPLE")
    if protocol in TLS_SERVERS:
        _material(document, at, tls, report)
    seen: set[str] = set()
    for index, cipher in enumerate(tls.cipher_suites):
        if cipher not in CIPHERS or cipher in seen:
            state = "repeated" if cipher in seen else "unknown"
            message = f"{cipher} is {state} and dropped"
            report.add(document, "GW-CIPHER", (*at, "cipherSuites", index), message)
        seen.add(cipher)


def _material(document: Document, path: FieldPath, tls: ServerTlsSpec, report: Report) -> None:
    files = bool(tls.server_certificate or tls.private_key)
    sources = [
        name
        for name, given in (
            ("credentialName", bool(tls.credential_name)),
            ("credentialNames", bool(tls.credential_names)),
            ("serverCertificate", files),
            ("tlsCertificates", bool(tls.tls_certificates)),
        )
        if given
    ]
    if tls.mode in ("PASSTHROUGH", "AUTO_PASSTHROUGH"):
        if sources or tls.ca_certificates:
            message = f"mode {tls.mode} does not terminate TLS; {', '.join(sources) or 'the CA'} is ignored"
            report.add(document, "GW-TLS-PASSTHROUGH", path, message)
        return

    def wrong(message: str, hint: str = "") -> None:
        report.add(document, "GW-TLS-MATERIAL", path, message, hint)

    if tls.mode == "ISTIO_MUTUAL":
        if sources:
            wrong("mode ISTIO_MUTUAL uses the mesh certificate", "remove the certificate fields")
        return
    if not sources:
        wrong(
            f"mode {tls.mode} needs a certificate", "set credentialName, or serverCertificate and privateKey"
        )
    elif len(sources) > 1:
        wrong(f"several sources of certificates: {', '.join(sources)}", "keep one")
    elif files and not (tls.server_certificate and tls.private_key):
        wrong("serverCertificate and privateKey belong together")
    if tls.mode == "MUTUAL" and files and not (tls.ca_certificates or tls.ca_cert_credential_name):
        wrong("mode MUTUAL needs caCertificates to verify clients")
