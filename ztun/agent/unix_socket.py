"""The sockets on which the agent listens, for proxies and for commands."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from ztun.errors import ConfigError

BACKLOG = 16  # connections that wait to be accepted: a few proxies, a few commands


def listen(path: Path, kind: socket.SocketKind, option: str) -> socket.socket:
    """A listening unix socket that only this user may use; raises :class:`ConfigError` ``socket_unusable``.

    A socket that somebody answers on is not taken away, nor is anything that is no socket; a socket that a dead process
    left is.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Nobody may connect before it listens, so the socket is made under a name that nobody knows.
        draft = path.with_name(f".{path.name}.new")
        for place in (path, draft):
            if os.path.lexists(place) and not place.is_socket():
                raise ConfigError(
                    "socket_unusable",
                    f"{option} {place}: there is something else than a socket",
                    hint="name a path where nothing is, or remove what is there if nobody needs it",
                )
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
                if probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT):
                    raise ConfigError(
                        "socket_unusable",
                        f"{option} {path}: somebody listens there already",
                        hint="is another agent, or istio-cni, running?",
                    )
            path.unlink()
        draft.unlink(missing_ok=True)
        sock.bind(str(draft))
        draft.chmod(0o600)
        sock.listen(BACKLOG)
        draft.rename(path)
    except OSError as error:
        sock.close()
        raise ConfigError(
            "socket_unusable",
            f"{option} {path}: {error.strerror or error}",
            hint="name a path below a directory that this user may write to, at most 100 characters",
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock
