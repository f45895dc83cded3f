"""Working inside another network namespace and coming back."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ztun.errors import EnrolmentError
from ztun.net.namespaces import NetworkNamespace

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]


@pytest.fixture
def named() -> Iterator[Path]:
    name = f"ztun-ns-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Path("/run/netns") / name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def own_key() -> tuple[int, int]:
    status = Path("/proc/thread-self/ns/net").stat()
    return status.st_dev, status.st_ino


def test_work_is_done_inside_and_the_thread_comes_back(named: Path) -> None:
    before = own_key()
    namespace = NetworkNamespace.open(named)
    try:
        assert not namespace.is_own
        assert namespace.run(own_key) == namespace.key != before
        assert namespace.run(interfaces) == ["lo"]
        assert own_key() == before
    finally:
        namespace.close()


def test_a_thread_comes_back_from_work_that_fails(named: Path) -> None:
    before = own_key()
    namespace = NetworkNamespace.open(named)

    def fails() -> None:
        raise RuntimeError("inside")

    try:
        with pytest.raises(RuntimeError, match="inside"):
            namespace.run(fails)
        assert own_key() == before
    finally:
        namespace.close()


def test_a_received_descriptor_is_told_apart_by_device_and_inode(named: Path) -> None:
    opened = NetworkNamespace.open(named)
    received = NetworkNamespace.received(os.dup(opened.descriptor))
    own = NetworkNamespace.own()
    try:
        assert received.key == opened.key != own.key
        assert own.is_own
    finally:
        for one in (opened, received, own):
            one.close()
    assert opened.descriptor == -1


def test_what_is_no_network_namespace_is_refused_and_closed() -> None:
    descriptor = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(EnrolmentError) as caught:
        NetworkNamespace.received(descriptor)
    assert caught.value.code == "not_a_namespace"
    with pytest.raises(OSError):
        os.fstat(descriptor)
    with pytest.raises(EnrolmentError) as caught:
        NetworkNamespace.open(Path("/run/netns/there-is-no-such-thing"))
    assert caught.value.code == "no_namespace"
