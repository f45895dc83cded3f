from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import RequestError
from certs.request import (
    MAX_REQUEST_BYTES,
    build_request,
    check_request,
    new_key,
    parse_request,
    request_pem,
    requested_identity,
)
from tests.certs.conftest import workload

pytestmark = pytest.mark.unit

URI = str(workload("client"))


def request_with(
    *names: x509.GeneralName, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key or new_key(), hashes.SHA256())


def test_request_has_one_critical_uri_and_no_subject() -> None:
    request = build_request(new_key(), workload("client"))
    extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert extension.critical
    assert [name.value for name in extension.value] == [URI]
    assert list(request.subject) == []
    assert requested_identity(parse_request(request_pem(request))) == workload("client")


def test_only_what_was_authorised_is_accepted() -> None:
    request = build_request(new_key(), workload("client"))
    check_request(request, workload("client"))
    with pytest.raises(RequestError) as raised:
        check_request(request, workload("server"))
    assert raised.value.code == "csr_identity_not_authorised"


def test_request_signed_by_another_key_is_no_proof_of_possession() -> None:
    der = bytearray(build_request(new_key(), workload("client")).public_bytes(serialization.Encoding.DER))
    other = build_request(new_key(), workload("client")).public_key()
    mine = x509.load_der_x509_csr(bytes(der)).public_key()
    encoding = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    stolen = bytes(der).replace(mine.public_bytes(*encoding), other.public_bytes(*encoding))  # type: ignore[union-attr]
    assert stolen != bytes(der)
    with pytest.raises(RequestError) as raised:
        requested_identity(x509.load_der_x509_csr(stolen))
    assert raised.value.code == "csr_signature"


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), "csr_identity"),
        ((x509.DNSName("example.org"),), "csr_identity"),
        ((x509.UniformResourceIdentifier(URI), x509.DNSName("example.org")), "csr_identity"),
        ((x509.UniformResourceIdentifier(URI), x509.UniformResourceIdentifier(URI)), "csr_identity"),
        ((x509.UniformResourceIdentifier("https://example.org"),), "csr_identity"),
        ((x509.UniformResourceIdentifier(f"{URI}\x00"),), "csr_identity"),
    ],
)
def test_other_names_are_refused(names: tuple[x509.GeneralName, ...], code: str) -> None:
    with pytest.raises(RequestError) as raised:
        requested_identity(request_with(*names))
    assert raised.value.code == code


def test_weak_and_unknown_keys_are_refused() -> None:
    name = x509.UniformResourceIdentifier(URI)
    assert requested_identity(request_with(name, key=rsa.generate_private_key(65537, 2048)))
    for key in (rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(RequestError) as raised:
            requested_identity(request_with(name, key=key))
        assert raised.value.code == "csr_key"
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([name]), critical=True)
    with pytest.raises(RequestError) as raised:
        requested_identity(builder.sign(ed25519.Ed25519PrivateKey.generate(), None))
    assert raised.value.code == "csr_key"


def test_too_long_a_request_is_not_parsed() -> None:
    with pytest.raises(RequestError) as raised:
        parse_request("x" * (MAX_REQUEST_BYTES + 1))
    assert raised.value.code == "csr_too_large"


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_requests_are_errors_not_crashes(noise: bytes, position: int) -> None:
    der = request_with(x509.UniformResourceIdentifier(URI)).public_bytes(serialization.Encoding.DER)
    damaged = der[:position] + noise + der[position + len(noise) :]
    try:
        request = x509.load_der_x509_csr(damaged)
    except ValueError:
        return
    try:
        assert requested_identity(request) == workload("client")
    except RequestError as error:
        assert error.code.startswith("csr_")


@given(st.text(max_size=200))
def test_arbitrary_text_is_no_request(text: str) -> None:
    with pytest.raises(RequestError):
        parse_request(text)
