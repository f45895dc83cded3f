"""Contexts of ordinary server TLS: 1.2 and 1.3, forward secret suites, no resumption: each client is verified anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from OpenSSL import SSL, crypto

from ztun.errors import ConfigError

MAX_CHAIN_DEPTH = 8  # as in the tunnels: leaf, root and what may be between
_SUITES = b"ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2
_VERSIONS = {
    "": 0,
    "TLS_AUTO": 0,
    "TLSV1_0": SSL.TLS1_VERSION,
    "TLSV1_1": SSL.TLS1_1_VERSION,
    "TLSV1_2": SSL.TLS1_2_VERSION,
    "TLSV1_3": SSL.TLS1_3_VERSION,
}
_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def server_context(chain: Sequence[x509.Certificate], key: _Key) -> SSL.Context:
    """A context that shows ``chain`` (leaf first). Raises :class:`ConfigError` when they do not belong together."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_SUITES)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    try:
        context.use_certificate(chain[0])
        for link in chain[1:]:
            context.add_extra_chain_cert(link)
        context.use_privatekey(key)
        context.check_privatekey()
    except (SSL.Error, crypto.Error) as error:
        raise ConfigError(
            "key_mismatch",
            "the private key and the certificate cannot be used together",
            hint="both must be of one pair; renew the credential",
        ) from error
    return context


def limit(context: SSL.Context, min_version: str, max_version: str, cipher_suites: Sequence[str]) -> None:
    """Narrow what is spoken, in Istio's words (``TLSV1_3``). Raises :class:`ConfigError` when nothing is left.

    Versions below 1.2 are never spoken, whatever is allowed.
    """
    for version in (min_version, max_version):
        if version not in _VERSIONS:
            raise ConfigError("tls_version", f"{version} is no TLS version", hint="TLSV1_2 or TLSV1_3")
    lowest, highest = _VERSIONS[min_version], _VERSIONS[max_version]
    if highest and highest < max(lowest, SSL.TLS1_2_VERSION):
        raise ConfigError(
            "tls_version", f"no TLS version up to {max_version} is spoken", hint="allow TLSV1_2"
        )
    if lowest > SSL.TLS1_2_VERSION:
        context.set_min_proto_version(lowest)
    if highest:
        context.set_max_proto_version(highest)
    if cipher_suites:
        try:
            context.set_cipher_list(":".join(cipher_suites).encode("ascii", "replace"))
        except SSL.Error as error:
            raise ConfigError(
                "tls_ciphers",
                "none of cipherSuites is known",
                hint="use OpenSSL's names, such as ECDHE-ECDSA-AES128-GCM-SHA256",
            ) from error


def verify_clients(
    context: SSL.Context,
    authorities: Iterable[x509.Certificate],
    revocations: Sequence[x509.CertificateRevocationList],
    *,
    required: bool,
) -> None:
    """Ask clients for a certificate of one of ``authorities``; without ``required`` they may have none.

    With revocation lists each CA of a client's chain needs one (as in Envoy).
    """
    trusted = context.get_cert_store()
    if trusted is None:
        raise RuntimeError("OpenSSL made a context without a certificate store")
    for authority in authorities:
        trusted.add_cert(crypto.X509.from_cryptography(authority))
        context.add_client_ca(authority)
    for revocation in revocations:
        trusted.add_crl(revocation)
    flags = crypto.X509StoreFlags.PARTIAL_CHAIN
    if revocations:
        flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
    trusted.set_flags(flags)
    context.set_verify_depth(MAX_CHAIN_DEPTH)
    context.set_verify(SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0))


def accepting(context: SSL.Context) -> SSL.Connection:
    """A session over memory BIOs that waits for a client."""
    session = SSL.Connection(context, None)
    session.set_accept_state()
    return session


def read_certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM text; raises :class:`ConfigError` when there is none that can be read."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(
            "bad_certificate",
            f"{what} is no PEM text with certificates",
            hint="it must begin with -----BEGIN CERTIFICATE-----",
        ) from error


def read_revocations(pem: bytes) -> list[x509.CertificateRevocationList]:
    """The revocation lists of a PEM text; raises :class:`ConfigError`."""
    end = b"-----END X509 CRL-----"
    parts = [part + end for part in pem.split(end) if part.strip()]
    try:
        return [x509.load_pem_x509_crl(part.lstrip()) for part in parts]
    except ValueError as error:
        raise ConfigError(
            "bad_revocations",
            "ca.crl is no PEM text with revocation lists",
            hint="it must begin with -----BEGIN X509 CRL-----",
        ) from error


def read_key(pem: bytes) -> _Key:
    """A private key without passphrase; raises :class:`ConfigError`."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # the text of the error may quote what it could not read
        raise ConfigError(
            "bad_key", "the private key cannot be read", hint="PEM without a passphrase is needed"
        ) from error
    if not isinstance(key, _Key):
        raise ConfigError(
            "bad_key", "the private key is of an unsupported kind", hint="use RSA, EC or Ed25519"
        )
    return key
