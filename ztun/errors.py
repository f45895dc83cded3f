"""Everything that can end a connection or refuse a configuration, with what the reader of a log needs.

``ZtunError``
 ├─ ``ConfigError``         a document, flag or environment variable cannot be used
 ├─ ``CaptureError``        the connection could not be attributed to a pod or an original destination
 ├─ ``DnsError``            a name could not be resolved
 ├─ ``RouteError``          no place to send the connection to
 ├─ ``ConnectError``        the next hop could not be reached over TCP
 ├─ ``TunnelTlsError``      the TLS session with the next hop failed
 ├─ ``TunnelError``         the HTTP/2 tunnel failed or was refused
 ├─ ``ConnectRefused``      the CONNECT request was answered with something other than 200
 ├─ ``PolicyDenied``        authorization said no, at the start or later
 ├─ ``RelayError``          the connection broke while bytes were flowing
 ├─ ``EnrolmentError``      a pod could not be put into the mesh, or taken out of it
 └─ ``ZdsError``            node agent and node proxy did not understand each other about a pod

Every class has a ``stage`` (where in a connection's life) and every instance a stable ``code``, a ``hint`` for the
person who reads it and the ``flag`` of Istio's ``response_flags`` label.
"""

from __future__ import annotations

from typing import ClassVar

from ztun.hints import hint_for


class ZtunError(Exception):
    """Root of all errors. ``code`` is stable across releases; ``peer`` is the other end, if there is one.

    Without a hint of its own an error has the one of its code (:mod:`ztun.hints`).
    """

    stage: ClassVar[str] = "internal"
    flag: ClassVar[str] = "CONNECT"

    def __init__(self, code: str, message: str, *, hint: str = "", peer: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint or hint_for(code)
        self.peer = peer


class ConfigError(ZtunError):
    """A document, a flag or an environment variable cannot be used; the message names the place."""

    stage = "config"


class CaptureError(ZtunError):
    """The connection could not be attributed to a local workload or to an original destination."""

    stage = "capture"


class DnsError(ZtunError):
    """The nameservers gave no answer, or could not be asked."""

    stage = "dns"


class RouteError(ZtunError):
    """The mesh has no usable answer for this destination (unknown waypoint, no healthy endpoint ...)."""

    stage = "route"


class ConnectError(ZtunError):
    """The TCP connection to the next hop failed or timed out."""

    stage = "connect"


class NetworkPolicySuspected(ConnectError):
    """The dial to an HBONE port timed out, which a NetworkPolicy that blocks it would cause."""

    flag = "NETWORK_POLICY"


class IdentityError(ZtunError):
    """No certificate could be had for the local workload."""

    stage = "tls"
    flag = "IDENTITY_ERROR"


class TunnelTlsError(ZtunError):
    """The TLS handshake failed: the peer's chain, identity, protocol version or ALPN was not acceptable."""

    stage = "tls"
    flag = "TLS_FAILURE"


class CertificateRevoked(TunnelTlsError):
    """The peer's chain holds a certificate that the revocation list names."""

    flag = "CERT_REVOKED"


class TunnelError(ZtunError):
    """The HTTP/2 connection could not be set up, or was closed by either side."""

    stage = "h2"
    flag = "H2_HANDSHAKE_FAILURE"


class ConnectRefused(ZtunError):
    """The peer answered CONNECT with a status other than 200."""

    stage = "connect-response"

    def __init__(self, status: int, message: str, *, hint: str = "", peer: str = "") -> None:
        super().__init__(f"http_status_{status}", message, hint=hint, peer=peer)
        self.status = status


class PolicyDenied(ZtunError):
    """Authorization refused the connection; ``code`` tells an explicit DENY from a missing ALLOW."""

    stage = "policy"
    flag = "DENY"


class RelayError(ZtunError):
    """The connection broke, timed out or was cut while bytes were flowing."""

    stage = "relay"


class EnrolmentError(ZtunError):
    """A pod could not be put into the mesh by the node agent, or taken out of it."""

    stage = "enrolment"


class ZdsError(ZtunError):
    """Node agent and node proxy did not understand each other about a pod (ZDS)."""

    stage = "zds"
