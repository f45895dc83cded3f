"""A small real client of ZDS, as a node proxy without a data path: it takes what it is told and answers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ztun.agent.pods import eventually
from ztun.zds.messages import (
    MAX_MESSAGE_BYTES,
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    Request,
    SnapshotSent,
    decode_request,
    encode_ack,
    encode_hello,
)


class ZdsProxy:
    """Connects to ``uds`` when entered; ``answer`` gives the error of the acknowledgement, empty for success."""

    def __init__(self, uds: Path, answer: Callable[[Request], str] = lambda request: "") -> None:
        self.requests: list[Request] = []
        """Everything it was told, in order."""
        self.namespaces: dict[str, tuple[int, int]] = {}
        """Device and inode of the namespaces of the pods that it has, by uid."""
        self.kept: set[str] = set()
        self.ended = threading.Event()
        self._uds = uds
        self._answer = answer

    def __enter__(self) -> Self:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.connect(str(self._uds))
        self._sock.send(encode_hello())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up()
        self._sock.close()

    def hang_up(self) -> None:
        """End the connection as a proxy that was killed does."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    @property
    def has_snapshot(self) -> bool:
        """Whether it was told that it knows everything."""
        return SnapshotSent() in self.requests

    @property
    def names(self) -> set[str]:
        """The pods that it has, as NAMESPACE/NAME."""
        told = {one.uid: f"{one.namespace}/{one.name}" for one in self.of(AddWorkload)}
        return {told[uid] for uid in list(self.namespaces)}

    def of(self, kind: type[Request]) -> list[Request]:
        """The requests of one kind."""
        return [one for one in list(self.requests) if isinstance(one, kind)]

    def ready(self) -> Self:
        """Wait until it was told of everybody."""
        eventually(lambda: self.has_snapshot, "the proxy has a snapshot")
        return self

    def _serve(self) -> None:
        try:
            while True:
                data, descriptors, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE_BYTES + 1, 4)
                if not data:
                    return
                request = decode_request(data)
                assert len(descriptors) == isinstance(request, AddWorkload), (request, descriptors)
                error = self._answer(request)
                self._took(request, descriptors)
                self._sock.send(encode_ack(error))
        except OSError:
            return
        finally:
            self.ended.set()

    def _took(self, request: Request, descriptors: list[int]) -> None:
        if isinstance(request, AddWorkload):
            status = os.fstat(descriptors[0])
            os.close(descriptors[0])
            self.namespaces[request.uid] = (status.st_dev, status.st_ino)
        elif isinstance(request, DelWorkload):
            self.namespaces.pop(request.uid, None)
        elif isinstance(request, KeepWorkload):
            self.kept.add(request.uid)
        self.requests.append(request)
