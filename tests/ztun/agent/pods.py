"""Pods that are network namespaces with both families, and everything that can be seen of them from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ztun.netns.namespaces import Namespace, Network, run

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
        """Run a command inside."""
        return self.namespace.run(*command, text=text)

    def inside(self, work: Callable[[], Any]) -> Any:
        """Call something on a thread that is inside."""
        return self.namespace.inside(work)

    def contents(self) -> Contents:
        """Everything that a capture may change."""
        return Contents(
            ruleset=self.run("nft", "list", "ruleset"),
            rules=(self.run("ip", "-4", "rule"), self.run("ip", "-6", "rule")),
            routes=(
                self.run("ip", "-4", "route", "show", "table", "all"),
                self.run("ip", "-6", "route", "show", "table", "all"),
            ),
            settings=self.inside(_settings),
        )


class PodNetwork(Network):
    """Makes pods; all of them are removed at the end."""

    def two_family_pod(self, name: str) -> Pod:
        """One more pod, with addresses that need no time to settle."""
        namespace = self.pod(name)
        pod = Pod(namespace, self._count)
        pod.run("ip", "address", "add", f"{pod.ip6}/64", "dev", "eth0", "nodad")
        pod.run("ip", "-6", "route", "add", "default", "dev", "eth0")
        eventually(lambda: "tentative" not in pod.run("ip", "-6", "address"), "addresses have settled")
        return pod

    def bare_pod(self, name: str) -> Pod:
        """A namespace with nothing but its loopback interface."""
        full = f"{self._prefix}-{name}"
        self._make(full)
        run("ip", "-n", full, "link", "set", "lo", "up")
        return Pod(Namespace(full, "127.0.0.1"), 0)


def _settings() -> dict[str, str]:
    found = {}
    for path in sorted(_SYSTEM.rglob("*")):
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
