from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from certs.bundle import certificates_pem, crls_pem
from certs.directory import CaDirectory
from certs.disk import write_file, write_key
from certs.errors import CertError
from certs.issuers import Change, Issuer, open_issuer
from certs.issuers.embedded import EmbeddedIssuer
from certs.issuers.files import FileIssuer
from certs.issuers.watching import watch_directory
from certs.request import build_request, new_key
from certs.store import CertificateStore
from tests.certs.conftest import Clock, workload

pytestmark = pytest.mark.unit

A, B = workload("a"), workload("b")


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> CaDirectory:
    directory = CaDirectory(tmp_path / "ca")
    directory.create("cluster.local", now=clock())
    return directory


def write_certificate(ca: CaDirectory, directory: Path, name: str, clock: Clock) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    authority, key, identity = ca.load(), new_key(), workload(name)
    chain = authority.sign(build_request(key, identity), identity, now=clock())
    write_key(directory / "key.pem", key)
    write_file(directory / "root-cert.pem", certificates_pem(authority.roots), private=False)
    write_file(directory / "crl.pem", crls_pem(authority.crls), private=False)
    write_file(directory / "cert-chain.pem", certificates_pem((*chain, *authority.roots)), private=False)


@contextlib.asynccontextmanager
async def watching(issuer: Issuer) -> AsyncIterator[asyncio.Queue[Change]]:
    changes: asyncio.Queue[Change] = asyncio.Queue()
    task = asyncio.create_task(issuer.watch(changes.put_nowait))
    try:
        await changes.get()
        while not changes.empty():  # what it says as it begins
            changes.get_nowait()
        yield changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_heard(changes: asyncio.Queue[Change], wanted: Change, path: Path) -> None:
    """Touch a file until the watch, which starts in its own time, has heard of it."""
    number = 0
    while True:
        number += 1
        path.write_text(str(number))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while await changes.get() is not wanted:
                    pass
                return


@pytest.mark.asyncio
async def test_embedded_ca_signs_and_follows_its_directory(ca: CaDirectory, clock: Clock) -> None:
    issuer = open_issuer(str(ca.path), now=clock)
    assert isinstance(issuer, EmbeddedIssuer)
    issued = await issuer.obtain(A)
    assert issued.chain[0].public_key() == issued.key.public_key()
    assert len((await issuer.trust()).roots) == 1
    rotated = ca.rotate(now=clock())
    assert (await issuer.trust()).roots == rotated.roots
    assert (await issuer.obtain(A)).chain[0].issuer == rotated.certificate.subject
    async with watching(issuer) as changes:
        await until_heard(changes, Change.TRUST, ca.path / "probe")
    await issuer.close()


@pytest.mark.asyncio
async def test_a_rotation_of_the_embedded_ca_makes_every_certificate_an_old_one(
    ca: CaDirectory, clock: Clock
) -> None:
    issuer = open_issuer(str(ca.path), now=clock)
    async with watching(issuer) as changes:
        await until_heard(changes, Change.TRUST, ca.path / "probe")
        ca.rotate(now=clock())
        while await changes.get() is not Change.CERTIFICATES:
            pass
    await issuer.close()


@pytest.mark.asyncio
async def test_files_of_one_identity(ca: CaDirectory, clock: Clock, tmp_path: Path) -> None:
    write_certificate(ca, tmp_path / "a", "a", clock)
    issuer = open_issuer(str(tmp_path / "a"), now=clock)
    assert isinstance(issuer, FileIssuer)
    issued = await issuer.obtain(A)
    assert len(issued.chain) == 1, "the root of the file is not sent"
    assert issued.chain[0].public_key() == issued.key.public_key()
    trust = await issuer.trust()
    assert trust.roots == ca.load().roots
    with pytest.raises(CertError) as raised:
        await issuer.obtain(B)
    assert raised.value.code == "files_no_such_identity"
    assert str(A) in raised.value.hint
    await issuer.close()


@pytest.mark.asyncio
async def test_files_that_do_not_belong_together_are_named(
    ca: CaDirectory, clock: Clock, tmp_path: Path
) -> None:
    write_certificate(ca, tmp_path / "a", "a", clock)
    stranger = CaDirectory(tmp_path / "stranger").create("cluster.local", now=clock())
    write_file(tmp_path / "a" / "root-cert.pem", certificates_pem(stranger.roots), private=False)
    issuer = open_issuer(str(tmp_path / "a"), now=clock)
    with pytest.raises(CertError) as raised:
        await issuer.obtain(A)
    assert raised.value.code == "files_wrong_root"


@pytest.mark.asyncio
async def test_files_of_several_identities(ca: CaDirectory, clock: Clock, tmp_path: Path) -> None:
    ca.revoke(1, None, now=clock())
    for name in ("a", "b"):
        write_certificate(ca, tmp_path / "all" / name, name, clock)
    issuer = open_issuer(str(tmp_path / "all"), now=clock)
    for identity in (A, B):
        assert (await issuer.obtain(identity)).chain
    trust = await issuer.trust()
    assert (len(trust.roots), len(trust.crls)) == (1, 1)


@pytest.mark.asyncio
async def test_files_are_followed_through_a_symlink_swap(
    ca: CaDirectory, clock: Clock, tmp_path: Path
) -> None:
    """The way Kubernetes replaces a Secret volume: ..data points to another directory from now on."""
    volume = tmp_path / "volume"
    write_certificate(ca, volume / "..1", "a", clock)
    (volume / "..data").symlink_to("..1")
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        (volume / name).symlink_to(Path("..data") / name)
    issuer = open_issuer(str(volume), now=clock)
    first = (await issuer.obtain(A)).chain
    async with watching(issuer) as changes:
        await until_heard(changes, Change.CERTIFICATES, volume / "probe")
        write_certificate(ca, volume / "..2", "a", clock)
        (volume / "..next").symlink_to("..2")
        while not changes.empty():
            changes.get_nowait()
        (volume / "..next").rename(volume / "..data")
        while await changes.get() is not Change.CERTIFICATES:
            pass
    assert (await issuer.obtain(A)).chain != first


@pytest.mark.asyncio
async def test_store_takes_up_renewed_files_and_keeps_the_old_ones_while_new_are_broken(
    ca: CaDirectory, clock: Clock, rng: random.Random, tmp_path: Path
) -> None:
    directory = tmp_path / "a"
    write_certificate(ca, directory, "a", clock)
    store = CertificateStore(open_issuer(str(directory), now=clock), now=clock, rng=rng)
    first = await store.get(A)
    store._changed(Change.CERTIFICATES)
    (directory / "key.pem").write_bytes(b"half a key")
    store._renew_due()
    task = store._entries[A].task
    assert task is not None
    await task
    assert store.peek(A) is first
    write_certificate(ca, directory, "a", clock)
    store._changed(Change.CERTIFICATES)
    store._renew_due()
    task = store._entries[A].task
    assert task is not None
    await task
    renewed = store.peek(A)
    assert renewed is not None
    assert renewed.generation > first.generation
    await store.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("source", ["ca", "a"])
async def test_damaged_list_leaves_the_last_good_trust_in_force(
    ca: CaDirectory, clock: Clock, rng: random.Random, tmp_path: Path, source: str
) -> None:
    ca.revoke(1, None, now=clock())
    write_certificate(ca, tmp_path / "a", "a", clock)
    issuer, crl = open_issuer(str(tmp_path / source), now=clock), tmp_path / source / "crl.pem"
    store = CertificateStore(issuer, now=clock, rng=rng)
    await store.start()
    bundle = store.bundle
    task = asyncio.create_task(store.run())
    newer = crls_pem(ca.load().revoke([2], now=clock()).crls)
    der = bytearray(ca.load().crls[0].public_bytes(Encoding.DER))
    der[9] = 0  # a version that there is not
    text = base64.encodebytes(bytes(der))
    crl.write_bytes(b"-----BEGIN X509 CRL-----\n%b-----END X509 CRL-----\n" % text)
    with pytest.raises(CertError, match=r"crl\.pem"):
        await issuer.trust()
    with structlog.testing.capture_logs() as logs:
        store._changed(Change.TRUST)
        while not any(line["event"] == "trust bundle not reloaded" for line in logs):
            await asyncio.sleep(0)
    assert logs[0]["code"] == "crl_unreadable"
    assert store.bundle is bundle
    crl.write_bytes(newer)
    store._changed(Change.TRUST)
    while store.bundle is bundle:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


@pytest.mark.asyncio
async def test_unchanged_files_past_their_half_make_no_new_generation(
    ca: CaDirectory, clock: Clock, rng: random.Random, tmp_path: Path
) -> None:
    write_certificate(ca, tmp_path / "a", "a", clock)
    store = CertificateStore(open_issuer(str(tmp_path / "a"), now=clock), now=clock, rng=rng)
    first = await store.get(A)
    clock.advance(hours=20)
    pauses = []
    for _ in range(10):
        store._renew_due()
        task = store._entries[A].task
        assert task is not None
        await task
        assert store.peek(A) is first
        due = store._entries[A].due
        assert due is not None
        pauses.append((due - clock()).total_seconds())
        clock.at = due
    assert pauses[0] < 3
    assert pauses[-1] > 100
    await store.close()


def remade(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / "crl.pem").write_text("second")


def renamed(directory: Path) -> None:
    fresh = directory.with_name("fresh")
    fresh.mkdir()
    (fresh / "crl.pem").write_text("second")
    directory.rename(directory.with_name("former"))
    fresh.rename(directory)


def relinked(directory: Path) -> None:
    fresh = directory.with_name("fresh")
    fresh.mkdir()
    (fresh / "crl.pem").write_text("second")
    directory.with_name("link").symlink_to(fresh)
    directory.with_name("link").rename(directory)


@contextlib.asynccontextmanager
async def contents(path: Path) -> AsyncIterator[asyncio.Queue[str]]:
    """What a file holds each time that the watch of its directory says that something changed."""
    held: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        with contextlib.suppress(OSError):
            held.put_nowait(path.read_text())

    task = asyncio.create_task(watch_directory(path.parent, read))
    try:
        yield held
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_held(held: asyncio.Queue[str], wanted: str) -> None:
    while await held.get() != wanted:
        pass


@pytest.mark.asyncio
@pytest.mark.parametrize("replace", [remade, renamed, relinked])
async def test_directory_that_was_replaced_is_followed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    monkeypatch.setattr("certs.issuers.watching.POLL_SECONDS", 0.2)
    (tmp_path / "real").mkdir()
    directory = tmp_path / "certs"
    directory.symlink_to("real") if replace is relinked else directory.mkdir()
    crl = directory / "crl.pem"
    crl.write_text("first")
    async with contents(crl) as held:
        await until_held(held, "first")
        replace(directory)
        await until_held(held, "second")
        for text in ("third", "fourth"):
            crl.write_text(text)
            await until_held(held, text)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "refusal",
    [
        None,
        OSError(errno.EMFILE, "too many open files"),
        ExceptionGroup("unhandled errors in a TaskGroup", [RuntimeError("of the watching thread")]),
    ],
    ids=["silent", "refused", "failing"],
)
async def test_directory_is_followed_where_no_notices_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: Exception | None
) -> None:
    """A file system that gives none, and a machine that has no watch left."""

    async def silent(*_paths: Path, stop_event: asyncio.Event, **_options: object) -> AsyncIterator[set[str]]:
        if refusal is not None:
            raise refusal
        while not stop_event.is_set():
            await asyncio.sleep(0)
            yield set()

    monkeypatch.setattr("certs.issuers.watching.POLL_SECONDS", 0.05)
    monkeypatch.setattr("watchfiles.awatch", silent)
    crl = tmp_path / "crl.pem"
    crl.write_text("first")
    async with contents(crl) as held:
        await until_held(held, "first")
        for text in ("another", "and another"):
            crl.write_text(text)
            await until_held(held, text)


@pytest.mark.asyncio
async def test_directory_that_comes_later_is_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("certs.issuers.watching.POLL_SECONDS", 0.05)
    crl = tmp_path / "late" / "crl.pem"
    async with contents(crl) as held:
        crl.parent.mkdir()
        crl.write_text("first")
        await until_held(held, "first")
        crl.write_text("second")
        await until_held(held, "second")


@pytest.mark.asyncio
async def test_watch_ends_promptly_and_survives_a_directory_that_goes_away(
    tmp_path: Path, clock: Clock
) -> None:
    issuer = FileIssuer(tmp_path / "missing")
    async with watching(issuer):
        await asyncio.sleep(0)
    with pytest.raises(CertError) as raised:
        await issuer.trust()
    assert raised.value.code == "file_not_read"
    (tmp_path / "missing").mkdir()
    with pytest.raises(CertError) as raised:
        await issuer.obtain(A)
    assert raised.value.code == "files_missing"
