"""Real handshakes over memory, and certificates of every wrong kind."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from certs.authority import CertificateAuthority, create_authority
from certs.bundle import TrustBundle
from certs.context import TlsContexts, handshake_failure, open_session
from certs.peer import PeerExpectation, TlsRejection
from certs.request import build_request, new_key
from certs.spiffe import SpiffeId
from certs.store import WorkloadCertificate

# OpenSSL reads the real clock.
NOW = datetime.now(UTC)
MESH = PeerExpectation(None, "cluster.local")
_generations = itertools.count(1)


@dataclass
class Trusting:
    """A bundle that can be exchanged, as the store's."""

    bundle: TrustBundle


def workload(name: str, trust_domain: str = "cluster.local") -> SpiffeId:
    return SpiffeId(trust_domain, "default", name)


def certificate(
    authority: CertificateAuthority, name: str = "client", trust_domain: str = "cluster.local"
) -> WorkloadCertificate:
    identity = workload(name, trust_domain)
    key = new_key()
    return wrap(identity, authority.sign(build_request(key, identity), identity, now=NOW), key)


def wrap(
    identity: SpiffeId, chain: tuple[x509.Certificate, ...], key: ec.EllipticCurvePrivateKey
) -> WorkloadCertificate:
    leaf = chain[0]
    return WorkloadCertificate(
        identity, chain, key, leaf.not_valid_before_utc, leaf.not_valid_after_utc, next(_generations)
    )


def crafted(
    authority: CertificateAuthority | None,
    *uris: str,
    start: timedelta = -timedelta(minutes=1),
    end: timedelta = timedelta(hours=1),
    ca: bool = False,
    usages: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ),
) -> WorkloadCertificate:
    """A leaf that no authority of ours would sign; without an authority it signs itself."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crafted")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + start)
        .not_valid_after(NOW + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    )
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    leaf = builder.sign(authority.key if authority else key, hashes.SHA256())
    return wrap(workload("client"), (leaf, *(authority.chain if authority else ())), key)


def foreign_authority() -> CertificateAuthority:
    return create_authority("cluster.local", now=NOW)


@dataclass
class Outcome:
    """What either side got out of one handshake."""

    client: SSL.Connection
    server: SSL.Connection
    failures: dict[str, TlsRejection]
    received: bytes

    def codes(self) -> dict[str, str]:
        return {side: failure.code for side, failure in self.failures.items()}


def shake(client: SSL.Connection, server: SSL.Connection, *, payload: bytes = b"first bytes") -> Outcome:
    """Drive a handshake to its end; the client sends ``payload`` as soon as it can."""
    failures: dict[str, TlsRejection] = {}
    received = b""
    done: set[str] = set()
    for _ in range(8):
        for side, here, there in (("client", client, server), ("server", server, client)):
            if side not in failures:
                try:
                    if side not in done:
                        here.do_handshake()
                        done.add(side)
                        if side == "client":
                            here.send(payload)
                    received += here.recv(65536)
                except SSL.WantReadError:
                    pass
                except SSL.Error as error:
                    failures[side] = handshake_failure(here, error)
            with contextlib.suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(1 << 17))
    return Outcome(client, server, failures, received)


def meet(
    contexts: tuple[TlsContexts, TlsContexts],
    certificates: tuple[WorkloadCertificate, WorkloadCertificate],
    expectations: tuple[PeerExpectation, PeerExpectation] = (MESH, MESH),
) -> Outcome:
    """Client first in each pair."""
    return shake(
        open_session(contexts[0].client(certificates[0]), "client", expectations[0]),
        open_session(contexts[1].server(certificates[1]), "server", expectations[1]),
    )
