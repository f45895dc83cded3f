"""The node proxy's end of ZDS: connects to the agent, does what the roster says, connects again.

One thing at a time: a request is answered before the next is read, as agents expect.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ztun.errors import EnrolmentError, ZdsError, ZtunError
from ztun.net.namespaces import NetworkNamespace
from ztun.telemetry.logging import get_logger
from ztun.zds.messages import MAX_MESSAGE_BYTES, AddWorkload, encode_ack, encode_hello, read_request
from ztun.zds.roster import Action, Answer, HangUp, Release, Roster, Start, Stop

FIRST_PAUSE_SECONDS = 0.01  # before connecting again; doubles up to the limit (ztunnel)
LONGEST_PAUSE_SECONDS = 15.0
JITTER = 0.2  # a part of the pause, so that the proxies of many nodes do not come at once
RETRY_SECONDS = 5.0  # until pods that could not be started are tried again (ztunnel)
MAX_DESCRIPTORS = 8  # room for more than the one that may come, so that those too are received, and closed


class Served(Protocol):
    """Whoever serves the pods."""

    async def start(self, pod: AddWorkload, namespace: NetworkNamespace) -> None:
        """Serve a pod and own its namespace; raises :class:`ZtunError` when that cannot be, and owns nothing."""

    async def stop(self, uid: str) -> None:
        """Stop serving a pod at once, and close its namespace."""


class ZdsClient:
    """Follows the agent that listens on ``path``. ``changed`` is called when ``ready`` may have changed."""

    def __init__(
        self, path: Path, served: Served, *, rng: random.Random, changed: Callable[[], None]
    ) -> None:
        self._path = path
        self._served = served
        self._rng = rng
        self._changed = changed
        self._roster: Roster[NetworkNamespace] = Roster()
        self._sock: socket.socket | None = None
        self._closing = asyncio.Event()
        self._pause = FIRST_PAUSE_SECONDS
        self._retry_at = 0.0
        self._log = get_logger("inpod")

    @property
    def ready(self) -> bool:
        """Whether an agent is connected and all its pods are served."""
        return self._roster.ready

    @property
    def pending(self) -> tuple[AddWorkload, ...]:
        """The pods that could not be started yet."""
        return self._roster.pending

    def close(self) -> None:
        """Take no more requests; pods that are served stay so. ``run`` ends."""
        self._closing.set()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    async def run(self) -> None:
        """Follow agents until closed or cancelled. Raises :class:`ZdsError` when one makes no sense."""
        said = ""
        try:
            while not self._closing.is_set():
                try:
                    await self._follow()
                except (OSError, _HungUp) as error:
                    if str(error) != said and not self._closing.is_set():
                        self._log.warning("no node agent", uds=str(self._path), reason=str(error))
                    said = str(error)
                self._roster.disconnected()
                self._changed()
                await self._wait_a_moment()
        finally:
            await self._carry_out(self._roster.closed(), None)
            self._changed()

    async def _follow(self) -> None:
        """One connection, from its start to its end, which is always an error."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            sock.connect(str(self._path))
            sock.send(encode_hello(), socket.MSG_NOSIGNAL)
            self._sock = sock
            try:
                self._log.info("connected to the node agent", uds=str(self._path))
                await self._carry_out(self._roster.connected(), sock)
                while True:
                    await self._next(sock)
                    self._changed()
            finally:
                self._sock = None

    async def _next(self, sock: socket.socket) -> None:
        """Serve one request, or try again what did not work, when it is time for that."""
        now = asyncio.get_running_loop().time()
        if not self._roster.pending:
            self._retry_at = now + RETRY_SECONDS
        elif now >= self._retry_at:
            self._retry_at = now + RETRY_SECONDS
            await self._carry_out(self._roster.retry(), sock)
            return
        try:
            async with asyncio.timeout_at(self._retry_at if self._roster.pending else None):
                await _readable(sock)
        except TimeoutError:
            return
        try:
            data, descriptors, flags = _receive(sock)
        except BlockingIOError:
            return
        if not data and not descriptors:
            raise ConnectionResetError("the agent closed the connection")
        await self._carry_out(self._understand(data, descriptors, flags), sock)

    def _understand(self, data: bytes, descriptors: list[int], flags: int) -> list[Action[NetworkNamespace]]:
        """What to do about a packet; every descriptor is given to the roster or closed."""
        truncated = bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
        with contextlib.ExitStack() as unwanted:
            for descriptor in descriptors:
                unwanted.callback(os.close, descriptor)
            try:
                request = read_request(data, descriptors=len(descriptors), truncated=truncated)
            except ZdsError as error:
                if error.code == "zds_no_workload_info":
                    return self._roster.impossible(error)
                return self._roster.not_understood(error)
            self._log.debug("agent asks", request=request)
            if not isinstance(request, AddWorkload):
                return self._roster.asked(request)
            unwanted.pop_all()  # the namespace has it from here on
        try:
            namespace = NetworkNamespace.received(descriptors[0])
        except EnrolmentError as error:
            return self._roster.unusable(request, str(error))
        return self._roster.added(request, namespace)

    async def _carry_out(self, actions: list[Action[NetworkNamespace]], sock: socket.socket | None) -> None:
        """Do it, and what follows from it. Raises ``OSError``, :class:`ZdsError` or ``_HungUp``."""
        for action in actions:
            if isinstance(action, Start):
                await self._carry_out(await self._start(action), sock)
            elif isinstance(action, Stop):
                await self._served.stop(action.uid)
            elif isinstance(action, Release):
                action.namespace.close()
            elif isinstance(action, Answer):
                assert sock is not None
                if action.error:
                    self._log.warning("request refused", reason=action.error)
                else:
                    self._pause = FIRST_PAUSE_SECONDS  # this agent and we understand each other
                sock.send(encode_ack(action.error), socket.MSG_NOSIGNAL)
            elif isinstance(action, HangUp):
                raise _HungUp(str(action.reason))
            else:
                raise action.reason

    async def _start(self, start: Start[NetworkNamespace]) -> list[Action[NetworkNamespace]]:
        try:
            await self._served.start(start.pod, start.namespace)
        except ZtunError as error:
            return self._roster.not_started(start.pod, start.namespace, str(error))
        return self._roster.started(start.pod, start.namespace)

    async def _wait_a_moment(self) -> None:
        pause = self._pause * (1 + JITTER * self._rng.random())
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._closing.wait()


class _HungUp(Exception):
    """We closed the connection, for this reason."""


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    """One packet, the descriptors beside it, and what the kernel says of it. Raises ``OSError``."""
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_MESSAGE_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, descriptors.tolist(), flags
