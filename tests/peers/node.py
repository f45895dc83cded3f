"""A ztun node proxy as a child process, and the documents of the mesh it is a part of."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeId
from tests.peers.addresses import free_port
from tests.peers.process import Process
from tests.peers.traffic import ROOT, Address

LOOPBACK = "127.0.0.1"
HTTP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of the mesh; its service account has its name."""

    name: str
    ip: str
    node: str
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> SpiffeId:
        """The identity of its certificate."""
        return SpiffeId(DEFAULT_TRUST_DOMAIN, self.namespace, self.name)

    def document(self) -> dict[str, Any]:
        """The Pod as ``kubectl get -o yaml`` would print it."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": {"app": self.name, **self.labels},
            },
            "spec": {"nodeName": self.node, "serviceAccountName": self.name},
            "status": {
                "phase": "Running",
                "podIP": self.ip,
                "podIPs": [{"ip": self.ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }


def write_mesh(directory: Path, pods: Sequence[Pod], documents: Iterable[Mapping[str, Any]] = ()) -> Path:
    """Write ``mesh.yaml`` with the pods in ambient namespaces; gives the directory for ``--config``."""
    directory.mkdir(parents=True, exist_ok=True)
    namespaces: list[Mapping[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"}},
        }
        for name in sorted({pod.namespace for pod in pods})
    ]
    everything = [*namespaces, *(pod.document() for pod in pods), *documents]
    (directory / "mesh.yaml").write_text(yaml.safe_dump_all(everything, sort_keys=False))
    return directory


@dataclass(frozen=True, slots=True)
class Forward:
    """A local port that enters the mesh as the pod ``source``."""

    listen: Address
    target: Address
    source: Pod

    def __str__(self) -> str:
        entry, target = (f"{host}:{port}" for host, port in (self.listen, self.target))
        return f"{entry}={target}@{self.source.namespace}/{self.source.name}"


class ProxyProcess(Process):
    """A proxy of any role, with ports of its own for admin, metrics and readiness.

    ``command`` is what follows ``python -m``, without the options that every role has.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        config: Path,
        authority: Path,
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._admin, self._metrics, self._readiness = (free_port(LOOPBACK) for _ in range(3))
        argv: list[str | Path] = [sys.executable, "-m", *command, "--config", config, "--ca", authority]
        argv += ["--admin-port", str(self._admin), "--metrics-port", str(self._metrics)]
        argv += ["--readiness-port", str(self._readiness)]
        super().__init__(
            name,
            argv,
            directory / f"{name}.log",
            ready=self._answers_ready,
            environment={"PYTHONPATH": str(ROOT), **(environment or {})},
        )

    def _answers_ready(self) -> bool:
        try:
            return self._get(self._readiness, "/healthz/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def admin(self, path: str) -> Any:
        """One JSON document of the admin interface."""
        return self._get(self._admin, path).raise_for_status().json()

    def metrics(self) -> str:
        """The metrics as Prometheus would scrape them."""
        return self._get(self._metrics, "/metrics").raise_for_status().text

    def sample(self, name: str) -> float | None:
        """The value of a metric without labels, None while it has none."""
        for line in self.metrics().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return float(value)
        return None

    @staticmethod
    def _get(port: int, path: str) -> httpx.Response:
        return httpx.get(f"http://{LOOPBACK}:{port}{path}", timeout=HTTP_SECONDS, trust_env=False)


class NodeProcess(ProxyProcess):
    """``ztun proxy`` for one node. ``wrapper`` is a module, with its arguments, that runs the module ``ztun``."""

    def __init__(
        self,
        node: str,
        *,
        config: Path,
        authority: Path,
        directory: Path,
        forwards: Sequence[Forward] = (),
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        command = [*wrapper, "ztun", "proxy", "--node", node]
        for forward in forwards:
            command += ["--forward", str(forward)]
        super().__init__(
            f"ztun-{node}",
            command,
            config=config,
            authority=authority,
            directory=directory,
            environment=environment,
        )
