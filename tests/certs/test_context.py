from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from OpenSSL import SSL

from certs.authority import create_authority
from certs.bundle import TrustBundle
from certs.context import (
    MAX_CONTEXTS,
    TlsContexts,
    _session,
    is_revoked,
    open_session,
    peer,
    rejection,
)
from certs.peer import PeerExpectation
from tests.certs.handshake import (
    MESH,
    NOW,
    Trusting,
    certificate,
    crafted,
    meet,
    shake,
    workload,
)

pytestmark = pytest.mark.unit

AUTHORITY = create_authority(now=NOW)
GOOD = "spiffe://cluster.local/ns/default/sa/client"
OTHER_DOMAIN = create_authority("example.org", now=NOW)


@pytest.fixture
def contexts() -> TlsContexts:
    return TlsContexts(Trusting(TrustBundle(1, (*AUTHORITY.roots, *OTHER_DOMAIN.roots))))


def expecting(*names: str) -> PeerExpectation:
    return PeerExpectation(frozenset(workload(name) for name in names))


# What works.


def test_both_sides_learn_the_other_and_bytes_flow(contexts: TlsContexts) -> None:
    client, server = certificate(AUTHORITY, "client"), certificate(AUTHORITY, "server")
    outcome = meet((contexts, contexts), (client, server), (expecting("server", "another"), MESH))
    assert outcome.failures == {}
    assert outcome.received == b"first bytes"
    assert peer(outcome.client).identity == workload("server")
    assert peer(outcome.server).identity == workload("client")
    assert peer(outcome.server).not_after == client.not_after
    assert peer(outcome.server).chain == (
        (AUTHORITY.certificate.subject.public_bytes(), client.chain[0].serial_number),
    )
    assert rejection(outcome.client) is None


def test_session_is_tls13_with_h2_and_the_faster_cipher(contexts: TlsContexts) -> None:
    outcome = meet((contexts, contexts), (certificate(AUTHORITY), certificate(AUTHORITY)))
    for side in (outcome.client, outcome.server):
        assert side.get_protocol_version_name() == "TLSv1.3"
        assert side.get_alpn_proto_negotiated() == b"h2"
        assert side.get_cipher_name() == "TLS_AES_128_GCM_SHA256"
    assert outcome.server.get_servername() is None


def test_intermediates_are_sent_and_belong_to_the_verified_path(contexts: TlsContexts) -> None:
    intermediate = AUTHORITY.intermediate(now=NOW)
    client = certificate(intermediate)
    outcome = meet((contexts, contexts), (client, certificate(AUTHORITY)))
    assert outcome.failures == {}
    assert peer(outcome.server).chain == (
        (intermediate.certificate.subject.public_bytes(), client.chain[0].serial_number),
        (AUTHORITY.certificate.subject.public_bytes(), intermediate.certificate.serial_number),
    )


def test_identity_is_not_given_out_before_the_peer_proved_its_key(contexts: TlsContexts) -> None:
    """The certificate is judged some bytes before the signature that proves possession of its key."""
    client = open_session(contexts.client(certificate(AUTHORITY)), "client", MESH)
    server = open_session(contexts.server(certificate(AUTHORITY)), "server", MESH)
    judged_early = 0
    for here, there in ((server, client), (client, server), (server, client)):
        with contextlib.suppress(SSL.WantReadError):
            there.do_handshake()
        for byte in there.bio_read(65536):
            here.bio_write(bytes((byte,)))
            try:
                here.do_handshake()
            except SSL.WantReadError:
                judged_early += _session(here).peer is not None
                with pytest.raises(RuntimeError):
                    peer(here)
    assert judged_early > 100
    assert peer(client).identity == peer(server).identity == workload("client")


def test_two_mutually_distrusting_moments_do_not_exist_during_a_root_rotation() -> None:
    rotated = AUTHORITY.rotate(now=NOW)
    late = TlsContexts(Trusting(TrustBundle(1, AUTHORITY.roots)))
    early = TlsContexts(Trusting(TrustBundle(2, rotated.roots)))
    old, new = certificate(AUTHORITY, "old"), certificate(rotated, "new")
    for sides in ((late, early), (early, late)):
        for pair in ((old, new), (new, old), (new, new)):
            assert meet(sides, pair).failures == {}


def test_retired_root_is_refused() -> None:
    rotated = AUTHORITY.rotate(now=NOW).retire_old_roots()
    contexts = TlsContexts(Trusting(TrustBundle(3, rotated.roots)))
    outcome = meet((contexts, contexts), (certificate(AUTHORITY), certificate(rotated)))
    assert outcome.codes() == {"server": "peer_unknown_issuer", "client": "alert_unknown_ca"}


def test_revocation_list_past_its_date_still_counts_and_unlisted_issuers_pass() -> None:
    client = certificate(AUTHORITY)
    stale = AUTHORITY.revoke([client.chain[0].serial_number], now=NOW - timedelta(days=400)).crls
    contexts = TlsContexts(Trusting(TrustBundle(1, AUTHORITY.roots, stale)))
    assert meet((contexts, contexts), (client, certificate(AUTHORITY))).codes()["server"] == "peer_revoked"
    assert meet((contexts, contexts), (certificate(AUTHORITY), certificate(AUTHORITY))).failures == {}


def test_standing_tunnel_can_be_judged_again(contexts: TlsContexts) -> None:
    client = certificate(AUTHORITY)
    verified = peer(meet((contexts, contexts), (client, certificate(AUTHORITY))).server)
    bundle = TrustBundle(1, AUTHORITY.roots)
    assert not is_revoked(bundle, verified.chain)
    revoking = bundle.with_crls(AUTHORITY.revoke([client.chain[0].serial_number], now=NOW).crls)
    assert is_revoked(revoking, verified.chain)


# Resumption.


def test_a_session_cannot_be_resumed(contexts: TlsContexts) -> None:
    own, server = certificate(AUTHORITY, "client"), certificate(AUTHORITY, "server")
    first = meet((contexts, contexts), (own, server))
    session = first.client.get_session()
    assert session is not None
    for expectation, codes in (
        (expecting("another"), {"server": "peer_identity_mismatch", "client": "alert_bad_certificate"}),
        (MESH, {}),
    ):
        again = open_session(contexts.client(own), "client", MESH)
        again.set_session(session)
        outcome = shake(again, open_session(contexts.server(server), "server", expectation))
        assert outcome.codes() == codes


# The cache of contexts.


def test_context_is_reused_until_certificate_or_bundle_change() -> None:
    trusting = Trusting(TrustBundle(1, AUTHORITY.roots))
    contexts = TlsContexts(trusting)
    first = certificate(AUTHORITY)
    context = contexts.client(first)
    assert contexts.client(first) is context
    assert contexts.server(first) is not context
    renewed = certificate(AUTHORITY)
    assert contexts.client(renewed) is not context
    context = contexts.client(renewed)
    trusting.bundle = trusting.bundle.with_root(OTHER_DOMAIN.roots[0])
    assert contexts.client(renewed) is not context
    assert len(contexts) == 2, "one per role: older generations are gone"


def test_open_connection_survives_the_context_it_was_made_with() -> None:
    trusting = Trusting(TrustBundle(1, AUTHORITY.roots))
    contexts = TlsContexts(trusting)
    own = certificate(AUTHORITY)
    client = open_session(contexts.client(own), "client", MESH)
    trusting.bundle = trusting.bundle.with_root(OTHER_DOMAIN.roots[0])
    server = open_session(contexts.server(own), "server", MESH)
    contexts.client(own)
    del contexts
    assert shake(client, server).received == b"first bytes"


def test_number_of_contexts_is_bounded(monkeypatch: pytest.MonkeyPatch, contexts: TlsContexts) -> None:
    assert MAX_CONTEXTS >= 500
    monkeypatch.setattr("certs.context.MAX_CONTEXTS", 3)
    for number in range(5):
        contexts.client(certificate(AUTHORITY, f"w{number}"))
    assert len(contexts) == 3


def test_a_mistake_in_verification_refuses_and_is_raised(
    monkeypatch: pytest.MonkeyPatch, contexts: TlsContexts
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr("certs.context.judge_leaf", broken)
    client = open_session(contexts.client(certificate(AUTHORITY)), "client", MESH)
    server = open_session(contexts.server(certificate(AUTHORITY)), "server", MESH)
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    server.bio_write(client.bio_read(65536))
    with pytest.raises(SSL.WantReadError):
        server.do_handshake()
    client.bio_write(server.bio_read(65536))
    with pytest.raises(LookupError, match="a mistake of ours"):
        client.do_handshake()
    with pytest.raises(RuntimeError):
        peer(client)


def test_anchor_may_be_an_intermediate_alone() -> None:
    intermediate = AUTHORITY.intermediate(now=NOW)
    anchor = TrustBundle(1, (intermediate.certificate,))
    contexts = TlsContexts(Trusting(anchor))
    assert meet((contexts, contexts), (certificate(intermediate), certificate(intermediate))).failures == {}


def test_trusted_root_is_no_workload() -> None:
    """A certificate that is itself in the bundle has a valid path of one, without any authority's signature."""
    root = crafted(None, GOOD, ca=True)
    contexts = TlsContexts(Trusting(TrustBundle(1, (*AUTHORITY.roots, root.chain[0]))))
    for pair in ((root, certificate(AUTHORITY)), (certificate(AUTHORITY), root)):
        outcome = meet((contexts, contexts), pair)
        assert sorted(outcome.codes().values()) == ["alert_bad_certificate", "peer_chain"]
        assert outcome.received == b""
