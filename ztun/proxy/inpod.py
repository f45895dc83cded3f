"""In-pod mode: the pods that a node agent names, each served inside its own network namespace.

A pod has everything of its own: listeners, the parts behind them, tunnels. Who it is comes from the agent; the mesh
must say the same, or its connections are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from certs.spiffe import SpiffeError, SpiffeId
from ztun.config import SOCKS5_PORT
from ztun.errors import ConfigError, RelayError, ZdsError, ZtunError
from ztun.mesh.model import Workload
from ztun.net.listeners import Listener, Listening, finish_all, listen
from ztun.net.namespaces import make_socket, rehearse
from ztun.proxy.captures import Captures, any_address
from ztun.proxy.entries import open_socks5
from ztun.proxy.inbound import Inbound
from ztun.proxy.outbound import Outbound
from ztun.proxy.passthrough import Passthrough
from ztun.proxy.resolving import open_dns
from ztun.telemetry.config_dump import ServedWorkload
from ztun.telemetry.logging import get_logger
from ztun.zds.client import ZdsClient
from ztun.zds.messages import AddWorkload
from ztun.zds.metrics import PodMetrics
from ztun.zds.settings import InpodSettings, ProxyPod

if TYPE_CHECKING:
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.namespaces import NetworkNamespace
    from ztun.proxy.plane import Plane
    from ztun.proxy.site import Site

BACKLOG = 128  # of the listeners in pods; ztunnel
FAREWELL_SECONDS = (
    2.0  # for what was said last to the peers of a pod that is gone; its namespace is held so long
)
READINESS = (
    "workload proxy manager"  # ztunnel's name for "connected to the agent, and all its pods are served"
)


@dataclass(slots=True, eq=False)
class ServedPod:
    """A pod of the agent, or the proxy's own, with what serves it."""

    pod: AddWorkload
    identity: SpiffeId
    """By what the agent says."""
    site: Site
    inbound: Inbound
    listeners: list[Listener] = field(default_factory=list)
    known: Workload | None = None
    """What the mesh last said of it."""

    def __str__(self) -> str:
        return f"{self.pod.namespace}/{self.pod.name}"


class InpodPods:
    """The pods of the agent. ``run`` follows it."""

    def __init__(self, plane: Plane, settings: InpodSettings) -> None:
        self._plane = plane
        self._settings = settings
        self._pods: dict[str, ServedPod] = {}
        self._leaving: set[ServedPod] = set()
        self._own: ServedPod | None = None
        self._stopping = False
        self._client = ZdsClient(settings.uds, self, rng=plane.rng, changed=self._changed)
        self._metrics = PodMetrics(plane.metrics)
        self._log = get_logger("inpod")
        plane.readiness.register(READINESS)

    async def open(self) -> None:
        """Serve the proxy's own pod, if it is one. Raises :class:`ConfigError`, also when privileges are missing."""
        try:
            rehearse(self._make_marked_socket)
        except OSError as error:
            raise ConfigError(
                "inpod_privileges",
                f"this process cannot work in the network namespaces of pods: {error.strerror}",
                hint="it has to be root with the capabilities NET_ADMIN, SYS_ADMIN and NET_RAW",
            ) from error
        if self._settings.itself is not None:
            self._open_own(self._settings.itself)

    async def run(self) -> None:
        """Follow the agent until ``stop_accepting``. Raises :class:`ZdsError` when it makes no sense."""
        await self._client.run()

    def inbounds(self) -> Iterator[Inbound]:
        """Those who accept tunnels."""
        for pod in (*self._everybody(), *self._leaving):
            yield pod.inbound

    def served(self) -> list[ServedWorkload]:
        """For the admin dump; safe on another thread."""
        pods = [ServedWorkload(pod.known or _unknown(pod.pod)) for pod in self._everybody()]
        return pods + [ServedWorkload(_unknown(pod), up=False) for pod in self._client.pending]

    def reconcile(self, snapshot: Snapshot) -> None:
        """Compare with a snapshot: who is no longer known as who it was is cut off, until it is known again."""
        for pod in self._everybody():
            before, pod.known = pod.known, self._find(pod)
            if before is not None and pod.known is None:
                self._cut(pod, "the workload is no longer in the mesh as it was")
        self._keep_certificates()

    async def stop_accepting(self) -> None:
        """Close every listener and take no more pods; open connections go on."""
        self._stopping = True
        self._client.close()
        finish_all(listener for pod in self._everybody() for listener in pod.listeners)

    # -- what the agent asks ---------------------------------------------------------------------------------

    async def start(self, pod: AddWorkload, namespace: NetworkNamespace) -> None:
        """Serve a pod and own its namespace. Raises :class:`ZtunError`; the namespace is the caller's then."""
        for other in self._pods.values():
            if other.site.namespace is not None and other.site.namespace.key == namespace.key:
                raise ZdsError("namespace_taken", f"its network namespace is that of {other}")
        site = self._plane.open_site(namespace)
        served: ServedPod | None = None
        try:
            served = self._make(pod, site, self._plane.settings.trust_domain)
            await self._listen(served)
            if self._stopping:
                raise ZdsError("zds_draining", "the proxy shuts down and takes no more pods")
        except (ZtunError, OSError) as error:
            if served is not None:
                self._close(served, "the pod could not be served")
            await self._plane.close_site(site)
            if isinstance(error, OSError):
                raise ConfigError("namespace_unusable", f"cannot work in its namespace: {error}") from error
            raise
        self._pods[pod.uid] = served
        self._admit(served)
        self._metrics.started.inc()

    async def stop(self, uid: str) -> None:
        """Stop serving a pod at once. Its namespace is closed when the last socket in it is."""
        pod = self._pods.pop(uid)
        self._close(pod, "the pod was removed from this node")
        await self._plane.close_site(pod.site)
        self._leaving.add(pod)
        self._plane.home.spawn(self._leave(pod))
        self._keep_certificates()
        self._metrics.stopped.inc()
        self._log.info("pod no longer served", workload=str(pod), uid=uid)

    # -- inside ----------------------------------------------------------------------------------------------

    def _make_marked_socket(self) -> None:
        with make_socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            self._plane.settings.sockets.apply(probe)

    async def _listen(self, served: ServedPod) -> None:
        plane, site, pod = self._plane, served.site, served.pod
        how = Listening(site.namespace, BACKLOG, self._settings.port_reuse, site.keep_source)

        def find(_address: str = "") -> Workload | None:
            return self._find(served)

        outbound = Outbound(plane, site)
        captures = Captures(plane, site, outbound, Passthrough(plane, site, find), find)
        served.listeners += captures.open(how)
        served.listeners.append(self._listen_hbone(served, how))
        if plane.settings.socks5:
            address = ("127.0.0.1", SOCKS5_PORT)
            served.listeners.append(open_socks5(plane, site, outbound, address, find, how))
        if plane.settings.dns is not None:
            await open_dns(plane, site, plane.settings.dns, find, str(served), how)
        self._log.debug("pod has its listeners", workload=str(served), uid=pod.uid)

    def _listen_hbone(self, served: ServedPod, how: Listening) -> Listener:
        plane, uid = self._plane, served.pod.uid
        return listen(
            self._plane.poller,
            any_address(plane, served.site),
            plane.settings.hbone_port,
            lambda sock, local, peer: served.inbound.accept(uid, sock, local, peer),
            plane.settings.sockets,
            purpose=f"HBONE to {served}",
            how=how,
        )

    def _open_own(self, itself: ProxyPod) -> None:
        """Tunnels to the proxy's own pod, e.g. for its metrics; nothing is redirected there."""
        pod = AddWorkload("", itself.name, itself.namespace, itself.service_account)
        site = self._plane.open_site(None)
        site.keep_source = False
        self._own = served = self._make(pod, site, itself.trust_domain)
        how = Listening(None, BACKLOG, self._settings.port_reuse)
        served.listeners.append(self._listen_hbone(served, how))
        self._admit(served)

    def _make(self, pod: AddWorkload, site: Site, trust_domain: str) -> ServedPod:
        """Raises :class:`ZdsError` for names that no certificate can carry."""
        try:
            identity = SpiffeId(trust_domain, pod.namespace, pod.service_account)
        except SpiffeError as error:
            raise ZdsError("zds_bad_identity", f"no identity can be made of its names: {error}") from error
        inbound = Inbound(self._plane, site, lambda _uid: self._find(served))
        served = ServedPod(pod, identity, site, inbound)
        return served

    def _admit(self, served: ServedPod) -> None:
        served.known = self._find(served)
        self._keep_certificates()
        self._log.info("pod served", workload=str(served), uid=served.pod.uid)

    def _find(self, served: ServedPod) -> Workload | None:
        """What the mesh knows of a pod, if that is what the agent says."""
        found = self._plane.snapshot.workload_named(served.pod.namespace, served.pod.name)
        return found if found is not None and found.identity == served.identity else None

    def _keep_certificates(self) -> None:
        store = self._plane.store
        store.retain({pod.identity for pod in self._everybody()})
        store.prefetch({pod.identity for pod in self._everybody() if pod.known is not None})

    def _everybody(self) -> list[ServedPod]:
        """The agent's pods and the proxy's own."""
        return [*self._pods.values(), *([self._own] if self._own is not None else ())]

    def _close(self, pod: ServedPod, reason: str) -> None:
        """Close a pod's listeners, and what came through them."""
        for listener in pod.listeners:
            listener.close()
        self._cut(pod, reason)

    def _cut(self, pod: ServedPod, reason: str) -> None:
        """End everything that goes through a pod's namespace."""
        why = RelayError("workload_gone", reason)
        # the connections first: a tunnel that is cut takes them along, and they would not know why
        self._plane.connections.cut_where(lambda one: one.site is pod.site, why)
        pod.inbound.close(why)

    async def _leave(self, pod: ServedPod) -> None:
        """Let go of a namespace once its sockets are closed; peers that cannot be reached do not hold it."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await pod.inbound.closed()
                    await pod.site.pool.closed()
        finally:
            pod.inbound.abort()
            for _, tunnel in list(pod.site.pool.tunnels()):
                tunnel.tls.abort()
            self._leaving.discard(pod)
            if pod.site.namespace is not None:
                pod.site.namespace.close()

    def _changed(self) -> None:
        self._metrics.active.set(len(self._pods))
        self._metrics.pending.set(len(self._client.pending))
        if self._client.ready:
            self._plane.readiness.finish(READINESS)
        else:
            self._plane.readiness.register(READINESS)


def _unknown(pod: AddWorkload) -> Workload:
    """A pod that the mesh does not know, as the admin dump shows it."""
    return Workload(pod.uid, pod.name, pod.namespace, service_account=pod.service_account)
