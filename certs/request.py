"""Key pairs and certificate signing requests: the private key stays where it was made.

Source: PKCS #10 (RFC 2986); ztunnel sends the same request: ECDSA P-256, empty subject, one critical URI SAN.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certs.errors import RequestError
from certs.spiffe import SpiffeError, SpiffeId
from certs.unreadable import UNREADABLE

MAX_REQUEST_BYTES = 16 * 1024  # a P-256 request is about 500 bytes, an RSA-4096 one about 1,800
MIN_RSA_BITS = 2048  # NIST SP 800-131A: shorter keys are disallowed


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a fresh ECDSA P-256 key pair, in memory only."""
    return ec.generate_private_key(ec.SECP256R1())


def build_request(key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> x509.CertificateSigningRequest:
    """Ask for a certificate of ``identity``; the signature proves possession of ``key``."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True
        )
        .sign(key, hashes.SHA256())
    )


def request_pem(request: x509.CertificateSigningRequest) -> str:
    """Give the request as PEM text."""
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def parse_request(pem: str | bytes) -> x509.CertificateSigningRequest:
    """Read a PEM request of at most ``MAX_REQUEST_BYTES``. Raises :class:`RequestError`."""
    data = pem.encode() if isinstance(pem, str) else pem
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestError("csr_too_large", f"the signing request is longer than {MAX_REQUEST_BYTES} bytes")
    try:
        return x509.load_pem_x509_csr(data)
    except UNREADABLE:
        raise RequestError("csr_unreadable", "the signing request is not a PEM PKCS #10 request") from None


def requested_identity(request: x509.CertificateSigningRequest) -> SpiffeId:
    """Give the identity that a request asks for.

    Raises :class:`RequestError` unless the request is signed by its own key, the key is strong enough, and
    the subject alternative names are exactly one URI that is a SPIFFE identity.
    """
    try:
        key = request.public_key()
        signed = request.is_signature_valid
        names = list(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        raise RequestError("csr_identity", "the signing request names no identity") from None
    except UNREADABLE:
        raise RequestError("csr_unreadable", "the signing request cannot be read") from None
    if not signed:
        raise RequestError("csr_signature", "the signing request is not signed by the key that it carries")
    strong = (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1")
    ) or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS)
    if not strong:
        raise RequestError("csr_key", "the key is too weak or of an unknown kind", hint="use ECDSA P-256")
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise RequestError("csr_identity", "the signing request must name exactly one URI and nothing else")
    try:
        return SpiffeId.parse(names[0].value)
    except SpiffeError as error:
        raise RequestError("csr_identity", str(error)) from None


def check_request(request: x509.CertificateSigningRequest, identity: SpiffeId) -> None:
    """Raise :class:`RequestError` unless the request is sound and asks for ``identity``, as authorised."""
    wanted = requested_identity(request)
    if wanted != identity:
        raise RequestError(
            "csr_identity_not_authorised",
            f"the signing request names {wanted}, but {identity} is what was authorised",
        )
