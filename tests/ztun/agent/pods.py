"""Pods that are network namespaces with both families, and everything that can be seen of them from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ztun.netns.namespaces import Namespace, Network, run
from ztun.agent.rules import PACKET_MARK
from ztun.net.dial import SO_MARK

PATIENCE_SECONDS = 30.0  # for something that takes milliseconds on an idle machine
POLL_SECONDS = 0.02
NETNS_DIRECTORY = Path("/run/netns")
VOLATILE = ("nf_conntrack_count", "random", "stat", "mode")  # settings that change by themselves

_SYSTEM = Path("/proc/sys/net")


@dataclass(frozen=True)
class Contents:
    """What a capture may change in a namespace, as the tools print it."""

    ruleset: str
    rules: tuple[str, str]
    routes: tuple[str, str]
    settings: dict[str, str]


class Pod:
    """A namespace with an address of each family on the network that it shares with others."""

    def __init__(self, namespace: Namespace, number: int) -> None:
        self.namespace = namespace
        self.name = namespace.name
        self.path = NETNS_DIRECTORY / namespace.name
        self.ip = namespace.ip
        self.ip6 = f"fd77::{number}"

    def address(self, family: int) -> str:
        """Its address of the family 4 or 6."""
        return self.ip if family == 4 else self.ip6

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command inside; ``ip netns exec`` would take several times as long."""
        return run("nsenter", f"--net={self.path}", "--", *command, text=text)

    def inside(self, work: Callable[[], Any]) -> Any:
        """Call something on a thread that is inside."""
        return self.namespace.inside(work)

    def contents(self) -> Contents:
        """Everything that a capture may change."""
        rules = [f"ip -{family} rule" for family in (4, 6)]
        routes = [f"ip -{family} route show table all" for family in (4, 6)]
        together = "; echo ===; ".join(["nft list ruleset", *rules, *routes])
        ruleset, rules4, rules6, routes4, routes6 = self.run("sh", "-ec", together).split("===\n")
        return Contents(ruleset, (rules4, rules6), (routes4, routes6), self.inside(_settings))


class PodNetwork(Network):
    """Makes pods; all of them are removed at the end."""

    def _make(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._stack.callback(_remove, name)

    def two_family_pod(self, name: str) -> Pod:
        """One more pod, with addresses that need no time to settle."""
        namespace = self.pod(name)
        pod = Pod(namespace, self._count)
        pod.run("ip", "address", "add", f"{pod.ip6}/64", "dev", "eth0", "nodad")
        pod.run("ip", "-6", "route", "add", "default", "dev", "eth0")
        eventually(lambda: "tentative" not in pod.run("ip", "-6", "address"), "addresses have settled")
        return pod

    def lonely_pod(self, name: str) -> Pod:
        """A namespace with addresses of both families on an interface that leads nowhere; cheap to make."""
        namespace = Namespace(f"{self._prefix}-{name}", "10.79.0.1")
        self._make(namespace.name)
        pod = Pod(namespace, 1)
        pod.run("ip", "-batch", "-", text=_LONELY)
        return pod


def _remove(name: str) -> None:
    if (NETNS_DIRECTORY / name).exists():  # a test may have done so
        run("ip", "netns", "del", name)


_LONELY = """
link set lo up
link add eth0 type veth peer name eth1
link set eth0 addrgenmode none
link set eth1 addrgenmode none
link set eth0 up
link set eth1 up
address add 10.79.0.1/24 dev eth0
address add fd77::1/64 dev eth0 nodad
route add default dev eth0
route add ::/0 dev eth0
"""


def _settings() -> dict[str, str]:
    found = {}
    for path in sorted((*_SYSTEM.glob("*/*"), *_SYSTEM.glob("*/conf/*/*"))):
        if path.is_file() and not any(word in path.name for word in VOLATILE):
            try:
                found[str(path.relative_to(_SYSTEM))] = path.read_text()
            except (OSError, UnicodeDecodeError):
                continue  # write-only, or without a value until an address is there
    return found


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until ``condition`` gives something true, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(POLL_SECONDS)
    return found


def listener(pod: Pod, ip: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket inside, where the proxy or an application would listen. ``::`` takes both families."""

    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ip == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((ip, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        sock.settimeout(PATIENCE_SECONDS)
        return sock

    made: socket.socket = pod.inside(make)
    return made


def dial(
    pod: Pod, ip: str, port: int, *, marked: bool = False, source: tuple[str, int] | None = None
) -> socket.socket:
    """Start a TCP connection from inside a pod."""
    sock: socket.socket = pod.inside(
        lambda: socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    )
    sock.settimeout(PATIENCE_SECONDS)
    if marked:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, PACKET_MARK)
    try:
        if source is not None:
            sock.bind(source)
        sock.connect((ip, port))
    except BaseException:
        sock.close()
        raise
    return sock
