"""Connections of a pod for somebody elsewhere: dialled where the pod is, handed over as descriptors.

``python -m ztun.lab.dialer PATH`` runs in a pod (a namespace or a container) and listens on a unix socket, which
reaches through network namespaces. Whoever asks gets a connected socket that the kernel, and so the mesh, takes for
the pod's own. Source: unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

from ztun.lab.process import LabError

CONNECT_SECONDS = 15.0  # covers a first certificate, a first tunnel and one retry on a busy machine
IDLE_SECONDS = 30.0  # to ask, and to take the answer
MAX_QUESTION_BYTES = 512  # a name has at most 253
MAX_AT_ONCE = 256  # threads
BACKLOG = 128

_CONNECTED = b"connected"


def serve(path: Path) -> None:
    """Answer until the process ends. Raises ``OSError``."""
    path.unlink(missing_ok=True)
    places = threading.BoundedSemaphore(MAX_AT_ONCE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        path.chmod(0o666)  # those that may look into the directory; users differ between containers
        listening.listen(BACKLOG)
        while True:
            asking, _ = listening.accept()
            places.acquire()
            threading.Thread(target=_answer, args=(asking, places), daemon=True).start()


def dial(path: Path, host: str, port: int) -> socket.socket:
    """A connection of the pod whose dialer listens on ``path``; blocks.

    Raises ``ConnectionError`` with what the pod was told, :class:`LabError` ``lab_no_dialer`` when none answers.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            asking.settimeout(CONNECT_SECONDS + IDLE_SECONDS)
            asking.connect(str(path))
            asking.send(f"{host} {port}".encode())
            said, descriptors, _, _ = socket.recv_fds(asking, MAX_QUESTION_BYTES, 1)
    except OSError as error:
        raise LabError("lab_no_dialer", f"{path}: {error}", hint="is the pod running?") from error
    if not descriptors:
        raise ConnectionError(said.decode(errors="replace") or "the pod's dialer ended")
    return socket.socket(fileno=descriptors[0])


def _answer(asking: socket.socket, places: threading.BoundedSemaphore) -> None:
    try:
        with asking:
            asking.settimeout(IDLE_SECONDS)
            host, _, port = asking.recv(MAX_QUESTION_BYTES).decode().rpartition(" ")
            try:
                dialled = socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS)
            except (OSError, ValueError) as error:
                asking.send(str(error).encode()[:MAX_QUESTION_BYTES])
                return
            with dialled:
                dialled.settimeout(None)
                socket.send_fds(asking, [_CONNECTED], [dialled.fileno()])
    except (OSError, UnicodeDecodeError):
        return  # whoever asked has gone, or is nobody we know
    finally:
        places.release()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
