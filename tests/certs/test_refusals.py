from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from certs.authority import CertificateAuthority, create_authority
from certs.bundle import TrustBundle
from certs.context import (
    TlsContexts,
    handshake_failure,
    open_session,
    peer,
)
from certs.peer import PeerExpectation
from certs.request import new_key
from certs.spiffe import SpiffeId
from certs.store import WorkloadCertificate
from tests.certs.handshake import (
    MESH,
    NOW,
    Trusting,
    certificate,
    crafted,
    foreign_authority,
    meet,
    shake,
    workload,
    wrap,
)

pytestmark = pytest.mark.unit

AUTHORITY = create_authority(now=NOW)
OTHER_DOMAIN = create_authority("example.org", now=NOW)
GOOD = "spiffe://cluster.local/ns/default/sa/client"


@pytest.fixture
def contexts() -> TlsContexts:
    return TlsContexts(Trusting(TrustBundle(1, (*AUTHORITY.roots, *OTHER_DOMAIN.roots))))


def expecting(*names: str) -> PeerExpectation:
    return PeerExpectation(frozenset(workload(name) for name in names))


# Every wrong certificate, refused by either side.


def forged(impostor: CertificateAuthority) -> WorkloadCertificate:
    """Names our CA as its issuer, signed by another key."""
    key = new_key()
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(AUTHORITY.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(GOOD)]), critical=True)
        .sign(impostor.key, hashes.SHA256())
    )
    return wrap(workload("client"), (leaf,), key)


REVOKED = certificate(AUTHORITY)
INTERMEDIATE = AUTHORITY.intermediate(now=NOW)
UNDER_REVOKED = certificate(INTERMEDIATE)
CRLS = AUTHORITY.revoke(
    [REVOKED.chain[0].serial_number, INTERMEDIATE.certificate.serial_number], now=NOW
).crls

WRONG: dict[str, tuple[Callable[[], WorkloadCertificate], str, str]] = {
    "other trust domain": (
        lambda: certificate(OTHER_DOMAIN, trust_domain="example.org"),
        "peer_trust_domain",
        "alert_bad_certificate",
    ),
    "expired": (
        lambda: crafted(AUTHORITY, GOOD, start=-timedelta(hours=2), end=-timedelta(seconds=5)),
        "peer_expired",
        "alert_certificate_expired",
    ),
    "not yet valid": (
        lambda: crafted(AUTHORITY, GOOD, start=timedelta(minutes=50)),
        "peer_not_yet_valid",
        "alert_bad_certificate",
    ),
    "revoked": (lambda: REVOKED, "peer_revoked", "alert_certificate_revoked"),
    "revoked intermediate": (lambda: UNDER_REVOKED, "peer_revoked", "alert_certificate_revoked"),
    "two URI names": (
        lambda: crafted(AUTHORITY, GOOD, "spiffe://cluster.local/ns/default/sa/other"),
        "peer_uri_sans",
        "alert_bad_certificate",
    ),
    "two URI names, one of them foreign": (
        lambda: crafted(AUTHORITY, GOOD, "https://example.org/"),
        "peer_uri_sans",
        "alert_bad_certificate",
    ),
    "no URI name": (lambda: crafted(AUTHORITY), "peer_uri_sans", "alert_bad_certificate"),
    "NUL in the name": (
        lambda: crafted(AUTHORITY, GOOD + "\x00.evil"),
        "peer_spiffe_grammar",
        "alert_bad_certificate",
    ),
    "line break in the name": (
        lambda: crafted(AUTHORITY, GOOD + "\n"),
        "peer_spiffe_grammar",
        "alert_bad_certificate",
    ),
    "extra path segment": (
        lambda: crafted(AUTHORITY, GOOD + "/admin"),
        "peer_spiffe_grammar",
        "alert_bad_certificate",
    ),
    "not a SPIFFE name": (
        lambda: crafted(AUTHORITY, "https://example.org/"),
        "peer_spiffe_grammar",
        "alert_bad_certificate",
    ),
    "self-signed": (lambda: crafted(None, GOOD), "peer_self_signed", "alert_unknown_ca"),
    "unknown issuer": (lambda: certificate(foreign_authority()), "peer_unknown_issuer", "alert_unknown_ca"),
    "forged signature": (lambda: forged(foreign_authority()), "peer_chain", "alert_decrypt_error"),
    "a CA as a workload": (lambda: crafted(AUTHORITY, GOOD, ca=True), "peer_chain", "alert_bad_certificate"),
}


@pytest.fixture
def strict() -> TlsContexts:
    return TlsContexts(Trusting(TrustBundle(1, (*AUTHORITY.roots, *OTHER_DOMAIN.roots), CRLS)))


@pytest.mark.parametrize("kind", WRONG)
def test_server_refuses_client(strict: TlsContexts, kind: str) -> None:
    make, code, alert = WRONG[kind]
    outcome = meet((strict, strict), (make(), certificate(AUTHORITY, "server")))
    assert outcome.codes() == {"server": code, "client": alert}
    assert outcome.received == b""
    with pytest.raises(RuntimeError):
        peer(outcome.server)


@pytest.mark.parametrize("kind", WRONG)
def test_client_refuses_server(strict: TlsContexts, kind: str) -> None:
    make, code, alert = WRONG[kind]
    outcome = meet((strict, strict), (certificate(AUTHORITY, "server"), make()))
    assert outcome.codes() == {"client": code, "server": alert}
    assert outcome.received == b""
    with pytest.raises(RuntimeError):
        peer(outcome.client)


@pytest.mark.parametrize(
    ("usage", "refuser"),
    [(ExtendedKeyUsageOID.SERVER_AUTH, "server"), (ExtendedKeyUsageOID.CLIENT_AUTH, "client")],
)
def test_certificate_for_the_other_side_only_is_refused(
    strict: TlsContexts, usage: x509.ObjectIdentifier, refuser: str
) -> None:
    narrow, good = crafted(AUTHORITY, GOOD, usages=(usage,)), certificate(AUTHORITY, "server")
    pair = (narrow, good) if refuser == "server" else (good, narrow)
    outcome = meet((strict, strict), pair)
    assert outcome.codes()[refuser] == "peer_chain"
    assert "clientAuth" in outcome.failures[refuser].hint


@pytest.mark.parametrize("expected", [expecting("another"), PeerExpectation(frozenset())])
def test_unexpected_identity_is_refused_by_either_side(
    contexts: TlsContexts, expected: PeerExpectation
) -> None:
    pair = certificate(AUTHORITY, "client"), certificate(AUTHORITY, "server")
    outcome = meet((contexts, contexts), pair, (expected, MESH))
    assert outcome.codes() == {"client": "peer_identity_mismatch", "server": "alert_bad_certificate"}
    outcome = meet((contexts, contexts), pair, (MESH, expected))
    assert outcome.codes() == {"server": "peer_identity_mismatch", "client": "alert_bad_certificate"}
    assert outcome.received == b""


def test_identity_of_another_domain_is_accepted_when_it_is_named(contexts: TlsContexts) -> None:
    foreign = SpiffeId("example.org", "default", "client")
    pair = certificate(AUTHORITY), certificate(OTHER_DOMAIN, trust_domain="example.org")
    assert meet((contexts, contexts), pair, (PeerExpectation(frozenset((foreign,))), MESH)).failures == {}
    both = PeerExpectation(frozenset((foreign,)), "cluster.local")
    assert meet((contexts, contexts), pair, (both, MESH)).codes()["client"] == "peer_trust_domain"


def test_expectation_of_nothing_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="names identities"):
        PeerExpectation(None)


# Peers that are not ours.


def plain_context(
    method: int, *, with_certificate: bool = True, alpn: list[bytes] | None = None
) -> SSL.Context:
    context = SSL.Context(method)
    if with_certificate:
        own = certificate(AUTHORITY, "server")
        context.use_certificate(own.chain[0])
        context.use_privatekey(own.key)
    if alpn is not None and method == SSL.TLS_CLIENT_METHOD:
        context.set_alpn_protos(alpn)
    return context


def plain_session(context: SSL.Context, role: str) -> SSL.Connection:
    return open_session(context, "client" if role == "client" else "server", MESH)


def test_client_without_certificate_is_refused(contexts: TlsContexts) -> None:
    bare = plain_context(SSL.TLS_CLIENT_METHOD, with_certificate=False, alpn=[b"h2"])
    server = open_session(contexts.server(certificate(AUTHORITY)), "server", MESH)
    outcome = shake(plain_session(bare, "client"), server)
    assert outcome.codes() == {"server": "peer_no_certificate", "client": "alert_certificate_required"}
    assert outcome.received == b""


@pytest.mark.parametrize("offered", [None, [b"http/1.1"], [b"http/1.1", b"h3"]])
def test_client_without_h2_is_refused(contexts: TlsContexts, offered: list[bytes] | None) -> None:
    context = plain_context(SSL.TLS_CLIENT_METHOD, alpn=offered)
    server = open_session(contexts.server(certificate(AUTHORITY)), "server", MESH)
    outcome = shake(plain_session(context, "client"), server)
    assert outcome.codes()["server"] == "tls_alpn"
    assert "client" in outcome.failures
    assert outcome.received == b""


def test_server_without_h2_is_refused(contexts: TlsContexts) -> None:
    client = open_session(contexts.client(certificate(AUTHORITY)), "client", MESH)
    outcome = shake(client, plain_session(plain_context(SSL.TLS_SERVER_METHOD), "server"))
    assert outcome.codes()["client"] == "tls_alpn"
    assert "server" in outcome.failures


def test_older_tls_is_refused_by_either_side(contexts: TlsContexts) -> None:
    old_client = plain_context(SSL.TLS_CLIENT_METHOD, alpn=[b"h2"])
    old_client.set_max_proto_version(SSL.TLS1_2_VERSION)
    server = open_session(contexts.server(certificate(AUTHORITY)), "server", MESH)
    outcome = shake(plain_session(old_client, "client"), server)
    assert outcome.codes() == {"server": "tls_version", "client": "tls_version"}
    old_server = plain_context(SSL.TLS_SERVER_METHOD)
    old_server.set_max_proto_version(SSL.TLS1_2_VERSION)
    client = open_session(contexts.client(certificate(AUTHORITY)), "client", MESH)
    assert shake(client, plain_session(old_server, "server")).codes()["client"] == "tls_version"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "tls_not_tls"),
        (b"CONNECT a:1 HTTP/1.1\r\n\r\n", "tls_not_tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "tls_not_tls"),
        (b"\x00" * 64, "tls_not_tls"),
    ],
)
def test_peer_that_does_not_speak_tls_is_named_as_such(contexts: TlsContexts, said: bytes, code: str) -> None:
    for role in ("client", "server"):
        own = certificate(AUTHORITY)
        context = contexts.client(own) if role == "client" else contexts.server(own)
        session = plain_session(context, role)
        with pytest.raises(SSL.WantReadError):
            session.do_handshake()
        session.bio_write(said)
        with pytest.raises(SSL.Error) as raised:
            session.do_handshake()
        assert handshake_failure(session, raised.value).code == code


def test_peer_that_hangs_up_is_named_as_such(contexts: TlsContexts) -> None:
    session = open_session(contexts.client(certificate(AUTHORITY)), "client", MESH)
    with pytest.raises(SSL.WantReadError):
        session.do_handshake()
    session.bio_shutdown()
    with pytest.raises(SSL.Error) as raised:
        session.do_handshake()
    assert handshake_failure(session, raised.value).code == "tls_truncated"


def test_messages_name_no_library(strict: TlsContexts) -> None:
    for make, _, _ in WRONG.values():
        outcome = meet((strict, strict), (make(), certificate(AUTHORITY, "server")))
        for failure in outcome.failures.values():
            assert not any(
                word in str(failure).lower() for word in ("openssl", "ssl routines", "x509", "sslv3")
            )
