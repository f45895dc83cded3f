from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from certs.authority import create_authority
from certs.bundle import TrustBundle
from certs.context import TlsContexts, handshake_failure, open_session, peer
from tests.certs.handshake import MESH, NOW, Trusting, certificate, shake

pytestmark = pytest.mark.unit

AUTHORITY = create_authority(now=NOW)
CONTEXTS = TlsContexts(Trusting(TrustBundle(1, AUTHORITY.roots)))
OWN = certificate(AUTHORITY)


def sessions() -> tuple[SSL.Connection, SSL.Connection]:
    return (
        open_session(CONTEXTS.client(OWN), "client", MESH),
        open_session(CONTEXTS.server(OWN), "server", MESH),
    )


def flights() -> list[bytes]:
    """What the client, the server, and the client again say in one handshake."""
    client, server = sessions()
    said = []
    for here, there in ((client, server), (server, client), (client, server)):
        with contextlib.suppress(SSL.WantReadError):
            here.do_handshake()
        said.append(here.bio_read(1 << 17))
        there.bio_write(said[-1])
    return said


LENGTHS = [len(flight) for flight in flights()]


@given(st.integers(0, 2), st.integers(0, max(LENGTHS)), st.binary(min_size=1, max_size=40), st.booleans())
def test_bytes_changed_on_the_way_end_in_a_refusal_or_change_nothing(
    flight: int, position: int, noise: bytes, inserted: bool
) -> None:
    """Some header bytes mean nothing in TLS 1.3; all else is refused, with a code, on the side that reads it."""
    client, server = sessions()
    failed: dict[str, str] = {}
    for number, (name, here, there) in enumerate(
        (
            ("client", client, server),
            ("server", server, client),
            ("client", client, server),
            ("server", server, client),
        )
    ):
        try:
            here.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            failed[name] = handshake_failure(here, error).code
        said = b""
        with contextlib.suppress(SSL.WantReadError):
            said = here.bio_read(1 << 17)
        if number == flight:
            at = min(position, len(said))
            said = said[:at] + noise + said[at if inserted else at + len(noise) :]
        if said:
            there.bio_write(said)
    for name, session in (("client", client), ("server", server)):
        try:
            assert peer(session).identity == OWN.identity
            assert name not in failed
        except RuntimeError:
            assert failed.get(name, "waiting")


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_are_refused_in_words(data: bytes, as_client: bool) -> None:
    session = sessions()[0 if as_client else 1]
    with contextlib.suppress(SSL.WantReadError):
        session.do_handshake()
    session.bio_write(data or b"\x00")
    try:
        session.do_handshake()
    except SSL.WantReadError:
        return
    except SSL.Error as error:
        assert handshake_failure(session, error).code.startswith(("tls_", "alert_", "peer_"))
    with pytest.raises(RuntimeError):
        peer(session)


def test_the_same_without_noise_succeeds() -> None:
    assert shake(*sessions()).failures == {}
