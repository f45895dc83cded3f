"""The mesh of the examples with clients in sidecar mode: a proxy of its own for each, and one for an echo server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.peers.node import Forward, Pod, ProxyProcess
from tests.peers.process import Process
from tests.waypoint.server.ground import APP_PORT, EchoProcess, Ground

INJECTED = {"sidecar.istio.io/inject": "true"}


class SidecarGround(Ground):
    """Clients, and the pod ``gray``, have sidecars; the other servers are behind a node proxy.

    The services are labelled for a waypoint that does not run: sidecars pass it by. ``ambient`` is a client of the
    node proxy. Pods are reached by their names, too: ``entries[client, pod]``.
    """

    def __init__(self, directory: Path, *, engine: str = "sidecar", **labels: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.engine = engine
        self.injected = {
            pod.name: replace(
                pod, labels={**pod.labels, **INJECTED, **labels.get(pod.name.replace("-", "_"), {})}
            )
            for pod in (*self.clients, self.gray)
        }
        self.ambient = self.pod("ambient-client", "far")
        self.pods = [*(self.injected.get(pod.name, pod) for pod in self.pods), self.ambient]
        self.sidecars: dict[str, ProxyProcess] = {}
        for client in (*self.clients, self.ambient):
            for server in (self.prod, self.gray):
                self.forward(client, server.name, (server.ip, APP_PORT))

    def start(self) -> None:
        self.write()
        echoes: list[Process] = [EchoProcess(pod, say, self.directory) for say, pod in self.servers.items()]
        self.far = self.node("far", self.forwards_of(self.ambient))
        self.sidecars = {name: self.sidecar(pod) for name, pod in self.injected.items()}
        self.proxies = [self.far, *self.sidecars.values()]
        for process in (*echoes, *self.proxies):
            self.spawn(process)
        for process in (*echoes, *self.proxies):
            process.wait_ready()

    def sidecar(self, pod: Pod) -> ProxyProcess:
        """The proxy of a pod, not started."""
        command = ["ztun", "proxy", "--node", pod.node, "--mode", "sidecar", "--engine", self.engine]
        command += ["--workload", f"{pod.namespace}/{pod.name}"]
        for forward in self.forwards_of(pod):
            command += ["--forward", str(forward)]
        return ProxyProcess(
            f"sidecar-{pod.name}",
            command,
            config=self.config,
            authority=self.authority.directory,
            directory=self.directory,
            environment={"LOG_FORMAT": "json", **self.environment},
        )

    def forwards_of(self, pod: Pod) -> Sequence[Forward]:
        """The ways in that belong to a pod."""
        return [forward for forward in self._forwards if forward.source.name == pod.name]


def destination_rule(host: str, **policy: Any) -> Mapping[str, Any]:
    """A DestinationRule of the default namespace with a traffic policy."""
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": host, "namespace": "default"},
        "spec": {"host": host, "trafficPolicy": policy},
    }
