"""The other end of ZDS, as plain as it can be: it says what the test says, and programs nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ztun.zds.messages import Request, decode_ack, decode_hello, encode_request

ANSWER_SECONDS = 60.0


class Agent:
    """Listens on ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(ANSWER_SECONDS)
        self._listener.bind(str(path))
        self._listener.listen()
        self._proxy = socket.socket()

    def accept(self) -> None:
        """Wait for the proxy."""
        self._proxy.close()
        self._proxy, _ = self._listener.accept()
        self._proxy.settimeout(ANSWER_SECONDS)
        decode_hello(self._proxy.recv(4096))

    def ask(self, request: Request, namespace: Path | None = None) -> str:
        """The proxy's answer to a request: why not, or nothing."""
        descriptors = [os.open(namespace, os.O_RDONLY)] if namespace is not None else []
        try:
            socket.send_fds(self._proxy, [encode_request(request)], descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return decode_ack(self._proxy.recv(4096)).error

    def close(self) -> None:
        """Hang up."""
        self._proxy.close()
        self._listener.close()
