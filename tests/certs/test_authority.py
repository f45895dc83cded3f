from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from certs.authority import (
    CLOCK_SKEW,
    LEAF_LIFETIME,
    MAX_LEAF_LIFETIME,
    CertificateAuthority,
    create_authority,
)
from certs.bundle import TrustBundle
from certs.errors import AuthorityError, RequestError
from certs.renewal import renew_at
from certs.request import build_request, new_key
from certs.spiffe import SpiffeError, SpiffeId
from tests.certs.conftest import START, Clock, uris, workload

pytestmark = pytest.mark.unit

A = workload("a")


def leaf_of(authority: CertificateAuthority, identity: SpiffeId = A) -> tuple[x509.Certificate, ...]:
    return authority.sign(build_request(new_key(), identity), identity, now=START)


def verifies(chain: tuple[x509.Certificate, ...], roots: tuple[x509.Certificate, ...]) -> bool:
    """A second opinion: the chain validation of ``cryptography`` itself."""
    verifier = PolicyBuilder().store(Store(list(roots))).time(START).build_client_verifier()
    try:
        verifier.verify(chain[0], list(chain[1:]))
    except x509.verification.VerificationError:
        return False
    return True


def test_leaf_is_what_peers_of_this_kind_of_mesh_expect(authority: CertificateAuthority) -> None:
    (leaf,) = leaf_of(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert uris(leaf) == [str(A)]
    assert list(leaf.subject) == []
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert leaf.not_valid_before_utc == START - CLOCK_SKEW
    assert leaf.not_valid_after_utc == START + LEAF_LIFETIME
    assert verifies((leaf,), authority.roots)


def test_serials_and_keys_differ(authority: CertificateAuthority) -> None:
    leaves = [leaf_of(authority)[0] for _ in range(20)]
    assert len({leaf.serial_number for leaf in leaves}) == 20


def test_intermediate_goes_with_the_leaf_and_the_root_does_not(authority: CertificateAuthority) -> None:
    intermediate = authority.intermediate(now=START)
    chain = leaf_of(intermediate)
    assert chain[1:] == (intermediate.certificate,)
    assert verifies(chain, authority.roots)
    assert not verifies(chain[:1], authority.roots)


def test_leaf_does_not_outlive_its_ca(authority: CertificateAuthority) -> None:
    end = authority.certificate.not_valid_after_utc
    request = build_request(new_key(), A)
    late = authority.sign(request, A, now=end - timedelta(hours=1))[0]
    assert late.not_valid_after_utc == end
    with pytest.raises(AuthorityError) as raised:
        authority.sign(request, A, now=end)
    assert raised.value.code == "ca_expired"


def test_a_short_lived_leaf_is_not_past_its_half_life_when_it_is_made(
    authority: CertificateAuthority,
) -> None:
    request = build_request(new_key(), A)
    (leaf,) = authority.sign(request, A, now=START, lifetime=timedelta(seconds=20))
    assert leaf.not_valid_before_utc < START
    assert START < renew_at(leaf.not_valid_before_utc, leaf.not_valid_after_utc) < leaf.not_valid_after_utc
    assert leaf.not_valid_after_utc == START + timedelta(seconds=20)


@pytest.mark.parametrize("lifetime", [timedelta(0), -timedelta(1), MAX_LEAF_LIFETIME + timedelta(seconds=1)])
def test_lifetime_is_bounded(authority: CertificateAuthority, lifetime: timedelta) -> None:
    with pytest.raises(AuthorityError) as raised:
        authority.sign(build_request(new_key(), A), A, now=START, lifetime=lifetime)
    assert raised.value.code == "ca_lifetime"


def test_other_trust_domains_and_other_identities_are_not_signed(authority: CertificateAuthority) -> None:
    with pytest.raises(AuthorityError) as raised:
        leaf_of(authority, workload("a", "example.org"))
    assert raised.value.code == "ca_trust_domain"
    with pytest.raises(RequestError):
        authority.sign(build_request(new_key(), workload("b")), A, now=START)


def test_trust_domain_of_a_ca_is_checked() -> None:
    assert create_authority("example.org", now=START).trust_domain == "example.org"
    with pytest.raises(SpiffeError):
        create_authority("Example.org", now=START)
    assert create_authority("a" * 255, now=START).trust_domain == "a" * 255


def test_parts_of_different_cas_are_refused(authority: CertificateAuthority) -> None:
    other = create_authority(now=START)
    with pytest.raises(AuthorityError) as raised:
        CertificateAuthority(authority.certificate, other.key, authority.roots)
    assert raised.value.code == "ca_key_mismatch"
    with pytest.raises(AuthorityError):
        CertificateAuthority(authority.certificate, authority.key, ())


def test_revocation_list_grows_and_is_numbered(authority: CertificateAuthority, clock: Clock) -> None:
    first = authority.revoke([1, 2], now=START)
    second = first.revoke([2, 3], now=START + timedelta(days=1))
    assert len(second.crls) == 1
    crl = second.crls[0]
    assert sorted(entry.serial_number for entry in crl) == [1, 2, 3]
    dates = {entry.serial_number: entry.revocation_date_utc for entry in crl}
    assert dates[2] == START
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 2
    assert crl.is_signature_valid(authority.certificate.public_key())  # type: ignore[arg-type]
    assert authority.crls == ()


def test_after_a_rotation_each_bundle_verifies_each_leaf(authority: CertificateAuthority) -> None:
    rotated = authority.rotate(now=START)
    again = rotated.rotate(now=START)
    for chain in (leaf_of(authority), leaf_of(rotated), leaf_of(again)):
        for bundle in (authority.roots, rotated.roots, again.roots):
            assert verifies(chain, bundle)


def test_retired_root_verifies_nothing_more(authority: CertificateAuthority) -> None:
    before = leaf_of(authority)
    retired = authority.rotate(now=START).revoke([7], now=START).retire_old_roots()
    assert retired.roots == (retired.certificate,)
    assert retired.chain == ()
    assert len(retired.crls) == 1
    assert verifies(leaf_of(retired), retired.roots)
    assert not verifies(before, retired.roots)
    TrustBundle(1, retired.roots, retired.crls)


def test_retiring_keeps_an_intermediate(authority: CertificateAuthority) -> None:
    fresh = authority.rotate(now=START).intermediate(now=START).retire_old_roots()
    assert len(fresh.roots) == 1
    assert fresh.chain == (fresh.certificate,)
    assert verifies(leaf_of(fresh), fresh.roots)
    assert not verifies(leaf_of(fresh), authority.roots)


def test_intermediate_cannot_be_rotated_without_its_root(authority: CertificateAuthority) -> None:
    with pytest.raises(AuthorityError) as raised:
        authority.intermediate(now=START).rotate(now=START)
    assert raised.value.code == "ca_rotate_intermediate"
