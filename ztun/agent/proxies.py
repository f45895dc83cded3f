"""The agent's end of ZDS: the proxies that are connected, and what each of them is told, as istio-cni does it.

While one proxy takes over from another both are connected. A proxy is told everything when it connects; what comes
later goes to the latest, and what goes away is told to all.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from ztun.agent.conversation import DEADLINE_SECONDS, Conversation
from ztun.agent.unix_socket import listen
from ztun.errors import ZdsError
from ztun.telemetry.logging import get_logger
from ztun.zds.messages import AddWorkload, DelWorkload

MAX_PROXIES = 16  # two during an upgrade; a proxy that cannot start connects again and again
ACCEPT_SECONDS = 0.2  # five connections a second, istio-cni's limit

_log = get_logger("agent::zds")


class Proxies:
    """Listens on ``path`` and keeps the connections.

    ``introduce`` sends a new proxy everything there is; it is called for one proxy at a time. ``changed`` is called
    when a proxy has come or gone.
    """

    def __init__(
        self,
        path: Path,
        *,
        introduce: Callable[[Conversation], Awaitable[None]],
        changed: Callable[[], None],
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self.path = path
        self._introduce = introduce
        self._changed = changed
        self._deadline = deadline
        self._connected: list[Conversation] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self._listener: socket.socket | None = None

    @property
    def latest(self) -> Conversation | None:
        """The proxy that connected last and is still there."""
        return self._connected[-1] if self._connected else None

    def __len__(self) -> int:
        return len(self._connected)

    def open(self) -> None:
        """Listen; raises :class:`ConfigError` ``socket_unusable``."""
        self._listener = listen(self.path, socket.SOCK_SEQPACKET, "--uds")
        self._start(self._accept())

    async def close(self) -> None:
        """Hang up on everybody. The rules in the pods are not touched."""
        if self._listener is not None:
            self.path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()  # each hangs up
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    async def add(self, workload: AddWorkload, descriptor: int) -> Conversation:
        """Tell the latest proxy of a pod and give who took it.

        Raises :class:`ZdsError` ``zds_no_proxy`` when none is connected, ``zds_refused`` when it says no, and what
        :meth:`Conversation.request` raises.
        """
        latest = self.latest
        if latest is None:
            raise ZdsError(
                "zds_no_proxy",
                f"no proxy is connected to {self.path}",
                hint="start one with INPOD_ENABLED=true and INPOD_UDS set to this path",
            )
        ack = await latest.request(workload, descriptor)
        if ack.error:
            raise ZdsError("zds_refused", f"the proxy refused the pod: {ack.error}", hint="its log says more")
        return latest

    async def delete(self, uid: str) -> None:
        """Tell all proxies that a pod is gone. One that does not listen is hung up on."""
        for conversation in list(self._connected):
            try:
                ack = await conversation.request(DelWorkload(uid))
            except ZdsError as error:
                _log.warning("a proxy was not told of a removal", connection=conversation.number, error=error)
            else:
                if ack.error:
                    _log.warning("removal refused", connection=conversation.number, reason=ack.error)

    async def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors left, for instance: the next one may get one
                _log.error("a proxy could not be accepted", error=error)
            else:
                sock.setblocking(False)
                if len(self._tasks) > MAX_PROXIES:  # this loop is one of them
                    _log.warning("too many proxies are connected", limit=MAX_PROXIES)
                    sock.close()
                else:
                    self._count += 1
                    conversation = Conversation(sock, self._count, deadline=self._deadline)
                    serving = self._start(self._serve(conversation))
                    serving.add_done_callback(lambda _, one=conversation: one.close())  # type: ignore[misc]
            await asyncio.sleep(ACCEPT_SECONDS)

    async def _serve(self, conversation: Conversation) -> None:
        try:
            await conversation.hello()
            # From here on it is told of removals; what it hears twice does no harm.
            self._connected.append(conversation)
            await self._introduce(conversation)
            _log.info("proxy connected", connection=conversation.number, proxies=len(self._connected))
            self._changed()
            await conversation.closed.wait()
        except ZdsError as error:
            _log.warning("proxy rejected", connection=conversation.number, error=error)
        finally:
            conversation.close()
            if conversation in self._connected:
                self._connected.remove(conversation)
                left = len(self._connected)
                _log.info("proxy disconnected", connection=conversation.number, proxies=left)
                self._changed()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
