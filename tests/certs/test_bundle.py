from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given
from hypothesis import strategies as st
from OpenSSL import crypto

from certs.authority import CertificateAuthority, create_authority
from certs.bundle import (
    MAX_BUNDLE_BYTES,
    TrustBundle,
    certificates_pem,
    crls_pem,
    parse_certificates,
    parse_crls,
)
from certs.errors import BundleError
from certs.request import build_request, new_key
from tests.certs.conftest import START, workload

pytestmark = pytest.mark.unit


def test_roots_come_and_go_by_generations(authority: CertificateAuthority) -> None:
    old, new = authority.certificate, create_authority(now=START).certificate
    first = TrustBundle(1, (old,))
    both = first.with_root(new)
    assert (both.generation, both.roots) == (2, (old, new))
    assert both.with_root(new) is both
    last = both.without_root(old)
    assert (last.generation, last.roots) == (3, (new,))
    assert last.without_root(old) is last
    with pytest.raises(BundleError) as raised:
        last.without_root(new)
    assert raised.value.code == "bundle_empty"
    assert first.roots == (old,)


def test_revocation_goes_by_issuer_and_serial(authority: CertificateAuthority) -> None:
    other = create_authority(now=START)
    bundle = TrustBundle(1, (authority.certificate, other.certificate))
    assert not bundle.revokes_anything
    assert not bundle.is_revoked([(b"", 1)])
    revoking = bundle.with_crls(authority.revoke([1], now=START).crls)
    mine, theirs = authority.certificate.subject.public_bytes(), other.certificate.subject.public_bytes()
    assert revoking.revokes_anything
    assert revoking.generation == 2
    assert revoking.is_revoked([(mine, 2), (mine, 1)])
    assert not revoking.is_revoked([(theirs, 1), (mine, 2)])
    assert revoking.same_trust(TrustBundle(9, revoking.roots[::-1], revoking.crls))
    assert not revoking.same_trust(bundle)


def test_workload_certificate_is_no_root(authority: CertificateAuthority) -> None:
    leaf = authority.sign(build_request(new_key(), workload("a")), workload("a"), now=START)[0]
    with pytest.raises(BundleError) as raised:
        TrustBundle(1, (leaf,))
    assert raised.value.code == "bundle_not_a_ca"


def test_list_in_a_roots_name_that_it_did_not_sign_is_refused(authority: CertificateAuthority) -> None:
    crl = authority.revoke([1], now=START).crls[0]
    forged = bytearray(crl.public_bytes(serialization.Encoding.DER))
    forged[-1] ^= 1
    with pytest.raises(BundleError) as raised:
        TrustBundle(1, authority.roots, parse_crls(bytes(forged), name="crl.pem"))
    assert raised.value.code == "crl_signature"
    intermediate = authority.intermediate(now=START).revoke([5], now=START)
    bundle = TrustBundle(1, authority.roots, intermediate.crls)
    assert bundle.is_revoked([(intermediate.certificate.subject.public_bytes(), 5)])


def test_pem_and_der_are_read_back(authority: CertificateAuthority) -> None:
    roots = (authority.certificate, create_authority(now=START).certificate)
    assert parse_certificates(certificates_pem(roots), name="x") == roots
    crls = (*authority.revoke([1], now=START).crls, *create_authority(now=START).revoke([2], now=START).crls)
    assert parse_crls(crls_pem(crls), name="x") == crls
    assert parse_crls(crls[0].public_bytes(serialization.Encoding.DER), name="x") == crls[:1]
    assert parse_crls(b" \n", name="x") == ()


def test_unusable_files_are_named(authority: CertificateAuthority) -> None:
    for data in (b"", b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(BundleError, match=r"roots\.pem"):
            parse_certificates(data, name="roots.pem")
    for data in (
        b"hello",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        b"-----BEGIN X509 CRL-----",
    ):
        with pytest.raises(BundleError, match=r"crl\.pem"):
            parse_crls(data, name="crl.pem")
    with pytest.raises(BundleError) as raised:
        parse_certificates(b"x" * (MAX_BUNDLE_BYTES + 1), name="x")
    assert raised.value.code == "certificates_too_large"


@given(st.binary(max_size=300), st.integers(0, 800))
def test_damaged_files_are_errors_not_crashes(noise: bytes, position: int) -> None:
    pem = certificates_pem(create_authority(now=START).roots)
    for parse in (parse_certificates, parse_crls):
        try:
            parse(pem[:position] + noise + pem[position + len(noise) :], name="x")
        except BundleError as error:
            assert str(error).startswith("x: ")


CA = create_authority(now=START).revoke([1, 2, 1 << 100], now=START)
ROOT_DER = CA.roots[0].public_bytes(serialization.Encoding.DER)
CRL_DER = CA.crls[0].public_bytes(serialization.Encoding.DER)
DAMAGE = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=2)


def damaged(data: bytes, damage: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for position, byte in damage:
        changed[position % len(changed)] = byte
    return bytes(changed)


def pem(kind: str, der: bytes) -> bytes:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n".encode()


@pytest.mark.filterwarnings("ignore")  # of odd names and serial numbers
@given(DAMAGE)
@example([(CRL_DER.index(b"\x02\x01\x01") + 2, 0x45)])  # another version
@example([(CRL_DER.index(b"\x17\x0d"), 0x30)])  # a date that is none, read when an entry is
def test_damaged_list_is_refused_or_understood(damage: list[tuple[int, int]]) -> None:
    der = damaged(CRL_DER, damage)
    for data in (der, pem("X509 CRL", der)):
        try:
            crls = parse_crls(data, name="crl.pem")
        except BundleError as error:
            assert str(error).startswith("crl.pem: ")
            continue
        try:
            TrustBundle(1, CA.roots, crls)
        except BundleError as error:
            assert error.code == "crl_signature"


@pytest.mark.filterwarnings("ignore")
@given(DAMAGE)
@example([(ROOT_DER.index(b"\x0c\x0dcluster.local"), 0x04)])  # a name that only OpenSSL refuses
def test_damaged_root_is_refused_or_understood(damage: list[tuple[int, int]]) -> None:
    try:
        roots = parse_certificates(pem("CERTIFICATE", damaged(ROOT_DER, damage)), name="root-cert.pem")
    except BundleError as error:
        assert str(error).startswith("root-cert.pem: ")
        return
    try:
        bundle = TrustBundle(1, roots, CA.crls)
    except BundleError as error:
        assert error.code in ("bundle_not_a_ca", "bundle_root_unreadable", "crl_signature")
        return
    assert crypto.X509.from_cryptography(bundle.roots[0])
