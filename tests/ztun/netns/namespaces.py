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
from ztun.agent.rules import CaptureOptions, load_program, route_command, rule_command

T = TypeVar("T")

CLONE_NEWNET = 0x40000000


def missing() -> str:
    """Why no namespaces can be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft", "nsenter"):
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
    """One network namespace. ``ip`` is its address on the bridge, ``port`` the bridge's end of its card."""

    def __init__(self, name: str, ip: str, port: str = "") -> None:
        self.name = name
        self.ip = ip
        self.port = port

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
        """Redirect what the pod sends and receives to the proxy that runs inside, by the agent's rules."""
        self.run("nft", "-f", "-", text=load_program(CaptureOptions(dns=False)))
        self.run("ip", "-batch", "-", text=route_command("add", 4) + rule_command("add"))


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
        port = f"port{self._count}"
        pod = Namespace(f"{self._prefix}-{name}", f"10.77.0.{self._count}", port)
        self._make(pod.name)
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

    def unplug(self, pod: Namespace) -> None:
        """Take the card of a namespace away, also of one that has no name any more."""
        run("ip", "-n", self._switch, "link", "del", pod.port)


class InsideNode(NodeProcess):
    """A node proxy inside a namespace."""

    def __init__(self, namespace: Namespace, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._namespace = namespace
        self.argv = ["ip", "netns", "exec", namespace.name, *self.argv]

    def _get(self, port: int, path: str) -> httpx.Response:  # type: ignore[override]
        url = f"http://{LOOPBACK}:{port}{path}"
        return self._namespace.inside(lambda: httpx.get(url, timeout=HTTP_SECONDS, trust_env=False))
