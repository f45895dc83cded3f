"""TLS of the CA server: its own certificate, made by its CA, and the certificates of its callers.

The interpreter's ``ssl`` serves here because uvicorn needs it; this is not on the path of any traffic.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.authority import CLOCK_SKEW, CertificateAuthority
from certs.bundle import certificates_pem
from certs.errors import AuthorityError, CertError
from certs.request import new_key

SERVER_LIFETIME = timedelta(hours=24)  # as a workload's; it is made anew at half of it


class ServerTls:
    """The TLS context of a server whose certificate and trusted roots change while it runs."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._current: ssl.SSLContext | None = None

    def renew(self, authority: CertificateAuthority, *, now: datetime) -> None:
        """Make a new certificate, and trust the callers' certificates that the CA's roots signed.

        Raises :class:`AuthorityError` when OpenSSL cannot use the CA's files; what was in use stays.
        """
        try:
            self._current = _context(authority, self._names, now)
        except ssl.SSLError as error:
            raise AuthorityError(
                "ca_certificate_unreadable", f"the certificates of the CA cannot be used: {error}"
            ) from None

    def context(self) -> ssl.SSLContext:
        """Give the context to listen with; each handshake goes on with the one that is current then."""
        if self._current is None:
            raise CertError("server_without_certificate", "the server has no certificate yet")
        listening = self._current

        def use_current(session: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            if self._current is not None:
                session.context = self._current

        listening.sni_callback = use_current  # called for every handshake, with or without a name
        return listening


def verified_path(session: ssl.SSLObject) -> tuple[bytes, ...] | None:
    """The path on which the handshake verified the caller, in DER, leaf first and trusted root last.

    None when the caller showed no certificate; empty when it showed one and there is no path to judge it by.
    """
    if session.getpeercert(binary_form=True) is None:
        return None
    # OpenSSL's own path: one that is put together again from what was sent could be another than the verified one. And
    # lists given to OpenSSL (VERIFY_CRL_CHECK_CHAIN) would have to be there for every issuer and up to date, and count
    # in the handshake only, while a connection may ask again after a revocation.
    own: Any = session
    if sys.version_info >= (3, 13):
        return tuple(own.get_verified_chain())
    # The same method before it was public; without it nobody is let in by certificate.
    ask = getattr(own._sslobj, "get_verified_chain", None)
    path = (ask() if ask is not None else None) or ()
    return tuple(ssl.PEM_cert_to_DER_cert(link.public_bytes()) for link in path)


def listen_on(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes a free one. Raises :class:`CertError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CertError("listen", f"cannot listen on {host}:{port}: {error.strerror}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        hint = "another process listens there, or this machine does not have that address"
        raise CertError("listen", f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from None
    return listening


def _context(authority: CertificateAuthority, names: Sequence[str], now: datetime) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=certificates_pem(authority.roots).decode("ascii"))
    key = new_key()
    chain = (_certify(authority, key, names, now), *authority.chain)
    load_chain(context, certificates_pem(chain), key)
    return context


def load_chain(context: ssl.SSLContext, chain_pem: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    """Give a context its certificate and key. ``ssl`` takes paths only; this one leads to memory."""
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key_pem + chain_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _certify(
    authority: CertificateAuthority, key: ec.EllipticCurvePrivateKey, names: Sequence[str], now: datetime
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - CLOCK_SKEW, authority.certificate.not_valid_before_utc))
        .not_valid_after(min(now + SERVER_LIFETIME, authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=True)
        .sign(authority.key, hashes.SHA256())
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
