"""Where things are unless somebody says otherwise, and what names a network namespace."""

from __future__ import annotations

from pathlib import Path

from ztun.errors import ConfigError

DEFAULT_STATE = Path("/run/ztun")  # gone after a boot, as the namespaces are
DEFAULT_CONTROL = DEFAULT_STATE / "control.sock"
DEFAULT_UDS = Path("/var/run/ztunnel/ztunnel.sock")  # where ztunnel looks for istio-cni
NAMED_NAMESPACES = Path("/run/netns")  # where ``ip netns`` keeps them
MAX_PATH = 4096  # PATH_MAX

_ONE_FOR_EACH = (("/", "proc", "self"), ("/", "proc", "thread-self"))


def namespace_path(text: str) -> Path:
    """The file of a namespace: a name as ``ip netns`` knows it, or an absolute path.

    Raises :class:`ConfigError` ``bad_netns`` for what names nothing, or not the same for everybody.
    """
    path = Path(text) if "/" in text else NAMED_NAMESPACES / text
    if (
        not text.isprintable()
        or text in ("", ".", "..")
        or len(text) > MAX_PATH
        or not path.is_absolute()
        or path.parts[:3] in _ONE_FOR_EACH
    ):
        raise ConfigError(
            "bad_netns",
            f"{text[:100]!r} does not name one network namespace for everybody",
            hint="a name as in 'ip netns list', or /proc/PID/ns/net of a process that lives as long as the pod",
        )
    return path
