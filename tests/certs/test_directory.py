from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from certs.authority import CertificateAuthority
from certs.bundle import TrustBundle, certificates_pem
from certs.directory import CaDirectory
from certs.disk import MAX_FILE_BYTES, make_directory, read_file, read_key, write_file, write_key
from certs.endpoint import ServerTls
from certs.errors import AuthorityError, CertError
from certs.request import build_request, new_key
from tests.certs.conftest import START, workload

pytestmark = pytest.mark.unit

A = workload("a")


@pytest.fixture
def directory(tmp_path: Path) -> CaDirectory:
    return CaDirectory(tmp_path / "ca")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def serial(authority: CertificateAuthority) -> int:
    return authority.sign(build_request(new_key(), A), A, now=START)[0].serial_number


def test_ca_is_read_back_as_it_was_made(directory: CaDirectory) -> None:
    for intermediate in (False, True):
        here = CaDirectory(directory.path / str(intermediate))
        made = here.create("cluster.local", now=START, intermediate=intermediate)
        read = here.load()
        assert (read.certificate, read.roots, read.chain) == (made.certificate, made.roots, made.chain)
        assert serial(read)


def test_keys_are_private_from_the_start(directory: CaDirectory) -> None:
    before = os.umask(0)
    try:
        directory.create("cluster.local", now=START, intermediate=True)
        directory.rotate(now=START)
    finally:
        os.umask(before)
    keys = list(directory.path.rglob("*key.pem"))
    assert len(keys) == 4
    assert {mode(key) for key in keys} == {0o600}
    assert mode(directory.path) == 0o700
    assert mode(directory.path / "previous") == 0o700


def test_existing_ca_is_never_overwritten(directory: CaDirectory) -> None:
    made = directory.create("cluster.local", now=START)
    with pytest.raises(AuthorityError) as raised:
        directory.create("cluster.local", now=START)
    assert raised.value.code == "ca_exists"
    assert directory.load().certificate == made.certificate


def test_missing_and_damaged_cas_are_named(directory: CaDirectory) -> None:
    with pytest.raises(CertError) as raised:
        directory.load()
    assert raised.value.code == "ca_missing"
    assert "certs init" in raised.value.hint
    directory.create("cluster.local", now=START)
    for name, damage in (
        ("root-cert.pem", b""),
        ("ca-cert.pem", b"no"),
        ("ca-key.pem", b"no"),
        ("crl.pem", b"no"),
    ):
        path = directory.path / name
        good = path.read_bytes()
        path.write_bytes(damage)
        with pytest.raises(CertError, match=name):
            directory.load()
        path.write_bytes(good)
    (directory.path / "root-cert.pem").unlink()
    with pytest.raises(CertError, match=r"root-cert\.pem: no such file"):
        directory.load()


@pytest.mark.filterwarnings("ignore")  # of odd names and serial numbers
@pytest.mark.parametrize("name", ["root-cert.pem", "ca-cert.pem", "crl.pem"])
def test_ca_with_a_damaged_byte_is_refused_in_words_or_works(directory: CaDirectory, name: str) -> None:
    directory.create("cluster.local", now=START)
    directory.revoke(1, None, now=START)
    path = directory.path / name
    kind, _, text = path.read_bytes().removeprefix(b"-----BEGIN ").partition(b"-----\n")
    der = base64.decodebytes(text.partition(b"-----")[0])
    for position in range(0, len(der), 3):
        changed = base64.encodebytes(der[:position] + b"\x45" + der[position + 1 :])
        path.write_bytes(b"-----BEGIN %b-----\n%b-----END %b-----\n" % (kind, changed, kind))
        try:
            authority = directory.load()
            TrustBundle(1, authority.roots, authority.crls)
            ServerTls(["ca"]).renew(authority, now=START)
        except CertError as error:
            assert error.hint


def test_rotation_keeps_the_old_root_until_it_is_retired(directory: CaDirectory) -> None:
    old = directory.create("cluster.local", now=START)
    new = directory.rotate(now=START)
    assert new.roots == (new.certificate, old.certificate)
    assert directory.load().certificate == new.certificate
    assert directory.retire().roots == (new.certificate,)
    assert directory.load().chain == ()
    assert not (directory.path / "previous").exists()


def test_rotation_with_an_intermediate_needs_the_key_of_the_root(directory: CaDirectory) -> None:
    directory.create("cluster.local", now=START, intermediate=True)
    kept = (directory.path / "root-key.pem").read_bytes()
    (directory.path / "root-key.pem").unlink()
    with pytest.raises(AuthorityError) as raised:
        directory.rotate(now=START)
    assert raised.value.code == "ca_root_key_missing"
    (directory.path / "root-key.pem").write_bytes(kept)
    rotated = directory.rotate(now=START)
    assert len(rotated.roots) == 2
    assert read_key(directory.path / "root-key.pem").public_key() == rotated.roots[0].public_key()
    assert len(rotated.chain) == 2
    again = directory.rotate(now=START)
    assert len(again.roots) == 3
    retired = directory.retire()
    assert len(retired.roots) == 1
    assert retired.chain == (retired.certificate,)


def test_certificates_of_earlier_cas_can_be_revoked(directory: CaDirectory) -> None:
    old = directory.create("cluster.local", now=START)
    before = serial(old)
    directory.rotate(now=START)
    directory.rotate(now=START)
    new = directory.load()
    after = serial(new)
    directory.revoke(before, old.certificate.subject, now=START)
    directory.revoke(after, None, now=START)
    directory.revoke(after + 1, new.certificate.subject, now=START)
    read = directory.load()
    bundle = TrustBundle(1, read.roots, read.crls)
    for issuer, number in ((old, before), (new, after), (new, after + 1)):
        assert bundle.is_revoked([(issuer.certificate.subject.public_bytes(), number)])
    assert not bundle.is_revoked([(old.certificate.subject.public_bytes(), after + 1)])


@pytest.mark.parametrize("intermediate", [False, True])
def test_bare_number_revokes_whichever_ca_signed(directory: CaDirectory, intermediate: bool) -> None:
    signers = [directory.create("cluster.local", now=START, intermediate=intermediate)]
    signers += [directory.rotate(now=START) for _ in range(2)]
    for signer in signers:
        leaf, other = serial(signer), serial(signer)
        directory.revoke(leaf, None, now=START)
        read = directory.load()
        bundle, name = TrustBundle(1, read.roots, read.crls), signer.certificate.subject.public_bytes()
        assert bundle.is_revoked([(name, leaf)])
        assert not bundle.is_revoked([(name, other)])


def test_bare_number_of_an_intermediate_goes_to_its_root(directory: CaDirectory) -> None:
    made = directory.create("cluster.local", now=START, intermediate=True)
    number, root = made.certificate.serial_number, made.certificate.issuer
    directory.revoke(number, None, now=START)
    read = directory.load()
    assert TrustBundle(1, read.roots, read.crls).is_revoked([(root.public_bytes(), number)])
    assert [crl.issuer for crl in read.crls] == [root]
    (directory.path / "root-key.pem").unlink()
    with pytest.raises(AuthorityError) as raised:
        directory.revoke(number, None, now=START)
    assert raised.value.code == "ca_not_issuer"
    assert "root-key.pem" in raised.value.hint


def test_intermediate_itself_can_be_revoked(directory: CaDirectory) -> None:
    made = directory.create("cluster.local", now=START, intermediate=True)
    directory.revoke(made.certificate.serial_number, made.roots[0].subject, now=START)
    bundle = TrustBundle(1, made.roots, directory.load().crls)
    assert bundle.is_revoked([(made.roots[0].subject.public_bytes(), made.certificate.serial_number)])


def test_certificate_of_a_stranger_cannot_be_revoked(directory: CaDirectory, tmp_path: Path) -> None:
    directory.create("cluster.local", now=START)
    stranger = CaDirectory(tmp_path / "other").create("cluster.local", now=START)
    with pytest.raises(AuthorityError) as raised:
        directory.revoke(1, stranger.certificate.subject, now=START)
    assert raised.value.code == "ca_not_issuer"


def test_directory_of_an_istio_secret_works(directory: CaDirectory) -> None:
    """Its chain file repeats the intermediate and the root."""
    made = directory.create("cluster.local", now=START, intermediate=True)
    chain = certificates_pem([made.certificate, made.roots[0]])
    (directory.path / "cert-chain.pem").write_bytes(chain)
    (directory.path / "crl.pem").unlink()
    assert directory.load().chain == (made.certificate,)
    (directory.path / "cert-chain.pem").unlink()
    assert directory.load().chain == (made.certificate,)


# Files.


def test_file_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one", private=False)
    write_file(path, b"two", private=True)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o600)
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "directory").mkdir()
    with pytest.raises(CertError) as raised:
        write_file(tmp_path / "directory", b"", private=True)
    assert raised.value.code == "file_not_written"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "file"]
    with pytest.raises(CertError):
        write_file(tmp_path / "missing" / "file", b"", private=True)
    with pytest.raises(CertError):
        make_directory(path / "below")


def test_private_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    link = tmp_path / "key.pem"
    link.symlink_to(target)
    write_key(link, new_key())
    assert target.read_bytes() == b""
    assert not link.is_symlink()


def test_unusable_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    locked = new_key().private_bytes(*encoding, serialization.BestAvailableEncryption(b"x"))
    strange = ed25519.Ed25519PrivateKey.generate().private_bytes(*encoding, serialization.NoEncryption())
    for data, code in ((b"", "key_unreadable"), (locked, "key_unreadable"), (strange, "key_kind")):
        path.write_bytes(data)
        with pytest.raises(CertError) as raised:
            read_key(path)
        assert raised.value.code == code
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CertError, match="longer than"):
        read_file(path)
