"""Network namespaces of pods: held open, told apart, with short work done inside.

A socket belongs for its whole life to the namespace that its thread was in when it was made, so nothing but making
it has to happen inside. Source: setns(2), namespaces(7), ioctl_ns(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

from ztun.errors import EnrolmentError

T = TypeVar("T")

NS_GET_NSTYPE = 0xB703  # ioctl_ns(2)
CLONE_NEWNET = 0x40000000

DESCRIPTORS_EACH = 2
"""What holding a namespace takes: the namespace, and the way back from it."""

_OWN = Path("/proc/self/ns/net")
_OWN_THREAD = Path("/proc/thread-self/ns/net")
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """An open network namespace; it lives at least as long as this is not closed."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.path = path
        """Where it was opened, for messages and for comparing."""
        self.key = _key(descriptor)
        """Device and inode: no other namespace has the same as long as this one is held open."""
        # kept, for opening it anew would be half of the cost of making a socket inside
        self._back = os.open(_OWN_THREAD, os.O_RDONLY | os.O_CLOEXEC)
        self.is_own = self.key == _key(self._back)
        """Whether this is the namespace that this process itself is in."""
        self.descriptor = descriptor

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a namespace; raises :class:`EnrolmentError` ``no_namespace`` or ``not_a_namespace``."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError as error:
            raise EnrolmentError(
                "no_namespace",
                f"there is no network namespace {path}",
                hint="'ip netns list' shows the named ones; a path such as /proc/PID/ns/net works too",
            ) from error
        except OSError as error:
            raise EnrolmentError("namespace_unreadable", f"{path}: {error.strerror}") from error
        return cls._checked(descriptor, path)

    @classmethod
    def received(cls, descriptor: int) -> Self:
        """Take over a descriptor that another process sent; it is closed when it is no network namespace.

        Raises :class:`EnrolmentError` ``not_a_namespace``.
        """
        return cls._checked(descriptor, Path(f"/proc/self/fd/{descriptor}"))

    @classmethod
    def _checked(cls, descriptor: int, path: Path) -> Self:
        try:
            kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
        except OSError:
            kind = 0
        try:
            if kind != CLONE_NEWNET:
                raise EnrolmentError(
                    "not_a_namespace",
                    f"{path} is not a network namespace",
                    hint="a name as in 'ip netns list', or a path such as /proc/PID/ns/net",
                )
            return cls(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def own(cls) -> Self:
        """The namespace that this process is in."""
        return cls.open(_OWN)

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            os.close(self._back)
            self.descriptor = -1

    def run(self, work: Callable[[], T]) -> T:
        """Call a short function inside, on this thread. Raises ``OSError`` when that is not allowed."""
        if self.is_own:
            return work()
        _enter(self.descriptor)
        try:
            return work()
        finally:
            try:
                _enter(self._back)
            except OSError:
                os.abort()  # everything after this would happen in the wrong namespace


def rehearse(work: Callable[[], T]) -> T:
    """Do something as it is done inside a pod, but here. Raises ``OSError`` where this process may not do that."""
    own = NetworkNamespace.own()
    try:
        _enter(own.descriptor)
        return work()
    finally:
        own.close()


def make_socket(family: int, kind: int, namespace: NetworkNamespace | None = None) -> socket.socket:
    """A socket of a namespace, else of the calling thread's; non-blocking and not inherited.

    ``kind`` is SOCK_STREAM or SOCK_DGRAM. Raises ``OSError``, also once the namespace is closed.
    """

    def make() -> socket.socket:
        return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    return make() if namespace is None else namespace.run(make)


def make_tcp_socket(family: int, namespace: NetworkNamespace | None = None) -> socket.SocketType:
    """The same for a TCP connection, as the C type, whose constructor makes no enums."""

    def make() -> socket.SocketType:
        return socket.SocketType(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)

    return make() if namespace is None else namespace.run(make)


def has_ipv6() -> bool:
    """Whether the namespace of the calling thread has IPv6; a kernel or a namespace may have it switched off."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _key(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
