"""Network namespaces as pods: made, joined by a bridge, captured by nftables, and removed without a trace."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tests.peers.node import HTTP_SECONDS, LOOPBACK, NodeProcess

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
PACKET_MARK = 0x539  # on what a proxy sends, so that it is not captured again
CONNECTION_MARK = 0x111  # on connections that a proxy made with somebody else's address
ROUTES_TO_PROXY = 100
CAPTURE = f"""
table inet ztun {{
  chain mark_in {{
    type filter hook prerouting priority mangle
    meta mark & 0xfff == {PACKET_MARK} ct mark set {CONNECTION_MARK}
  }}
  chain mark_out {{
    type route hook output priority mangle
    ct mark & 0xfff == {CONNECTION_MARK} meta mark set ct mark
  }}
  chain redirect_in {{
    type nat hook prerouting priority dstnat
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != {PACKET_MARK} redirect to :15006
  }}
  chain redirect_out {{
    type nat hook output priority -100
    meta mark & 0xfff == {CONNECTION_MARK} accept
    oifname lo ip daddr != 127.0.0.1 accept
    ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != {PACKET_MARK} redirect to :15001
  }}
}}
"""


def missing() -> str:
    """Why no namespaces can be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"network namespaces need the command {tool}"
    probe = f"ztun-probe-{os.getpid()}"
    try:
        run("ip", "netns", "add", probe)
    except RuntimeError as error:
        return f"network namespaces cannot be made: {error}"
    run("ip", "netns", "del", probe)
    return ""


def run(*command: str, text: str | None = None) -> str:
    """Run a command; raises ``RuntimeError`` with what it complained about."""
    done = subprocess.run(command, capture_output=True, text=True, input=text, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Namespace:
    """One network namespace. ``ip`` is its address on the bridge."""

    def __init__(self, name: str, ip: str) -> None:
        self.name = name
        self.ip = ip

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command inside."""
        return run("ip", "netns", "exec", self.name, *command, text=text)

    def inside(self, work: Callable[[], T]) -> T:
        """Call ``work`` on a thread that is inside; sockets it makes stay there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path("/run/netns", self.name).open() as handle:
                    if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def capture(self) -> None:
        """Redirect what the pod sends and receives to the proxy that runs inside."""
        self.run("nft", "-f", "-", text=CAPTURE)
        mark, table = f"{CONNECTION_MARK:#x}/0xfff", str(ROUTES_TO_PROXY)
        self.run("ip", "rule", "add", "fwmark", mark, "pref", "32764", "lookup", table)
        self.run("ip", "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", table)


class Network:
    """Namespaces on one bridge, which is in a namespace of its own: nothing of the machine's is touched."""

    def __init__(self) -> None:
        self._prefix = f"ztun-{os.getpid()}"
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        self._switch = f"{self._prefix}-switch"
        self._make(self._switch)
        run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _make(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._stack.callback(run, "ip", "netns", "del", name)

    def pod(self, name: str) -> Namespace:
        """One more namespace with an address and a default route."""
        self._count += 1
        pod = Namespace(f"{self._prefix}-{name}", f"10.77.0.{self._count}")
        self._make(pod.name)
        port = f"port{self._count}"
        run(
            "ip", "-n", pod.name, "link", "add", "eth0", "type", "veth",
            "peer", "name", port, "netns", self._switch,
        )  # fmt: skip
        run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", pod.name, "link", "set", "lo", "up")
        run("ip", "-n", pod.name, "address", "add", f"{pod.ip}/24", "dev", "eth0")
        run("ip", "-n", pod.name, "link", "set", "eth0", "up")
        run("ip", "-n", pod.name, "route", "add", "default", "dev", "eth0")
        return pod


class InsideNode(NodeProcess):
    """A node proxy inside a namespace."""

    def __init__(self, namespace: Namespace, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._namespace = namespace
        self.argv = ["ip", "netns", "exec", namespace.name, *self.argv]

    def _get(self, port: int, path: str) -> httpx.Response:  # type: ignore[override]
        url = f"http://{LOOPBACK}:{port}{path}"
        return self._namespace.inside(lambda: httpx.get(url, timeout=HTTP_SECONDS, trust_env=False))
