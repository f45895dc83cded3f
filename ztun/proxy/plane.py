"""What all parts of a proxy share: the state of the mesh, certificates, tunnels, telemetry."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from certs.context import TlsContexts
from certs.errors import CertError
from ztun.dns.lookups import Lookups
from ztun.errors import IdentityError
from ztun.hbone.guard import Abuse
from ztun.mesh.baggage import encode_baggage
from ztun.net.poller import Poller
from ztun.proxy.connections import Connections
from ztun.proxy.resolving import dns_surroundings
from ztun.proxy.site import Site
from ztun.sources.collection import let_go
from ztun.telemetry.logging import get_logger
from ztun.telemetry.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from certs.spiffe import SpiffeId
    from certs.store import CertificateStore, WorkloadCertificate
    from ztun.config import ProxySettings
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.net.namespaces import NetworkNamespace
    from ztun.net.pool import PoolKey
    from ztun.net.tunnel import Tunnel
    from ztun.telemetry.access_log import AccessLog
    from ztun.telemetry.metrics import Metrics


class Plane:
    """The parts that a connection needs, whichever way it came. ``snapshot`` is replaced whole on a reload."""

    def __init__(
        self,
        settings: ProxySettings,
        snapshot: Snapshot,
        store: CertificateStore,
        metrics: Metrics,
        access_log: AccessLog,
        *,
        rng: random.Random,
        readiness: Readiness | None = None,
    ) -> None:
        self.settings = settings
        self.readiness = readiness or Readiness()
        self.snapshot = snapshot
        self.store = store
        self.contexts = TlsContexts(store)
        self.metrics = metrics
        self.rng = rng
        self.loop = asyncio.get_running_loop()
        self.poller = Poller(self.loop)
        self.connections = Connections(metrics, access_log, settings.timeouts, self.loop.time)
        self.draining = False
        self.dns = dns_surroundings(settings, lambda: self.snapshot, metrics, rng)
        self.lookups = Lookups(self.loop.time)
        """Of names that only the world outside the mesh knows."""
        self.home = Site(self)
        """The proxy's own network namespace."""
        self.sites: dict[Site, None] = {self.home: None}
        """All places that connections are made from: in in-pod mode each pod is one more."""
        self._baggage: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._log = get_logger("proxy")

    def replace_snapshot(self, snapshot: Snapshot) -> None:
        """A new state of the mesh: new decisions use it, open connections are judged by it."""
        before: list[object] = [self.snapshot]
        self.snapshot = snapshot
        self._baggage = {}
        self._changed.set()
        self._changed = asyncio.Event()
        self._judge(snapshot, self.connections.judge_again(snapshot), 0)
        self._retain_tunnels(snapshot)
        self.loop.run_in_executor(None, let_go, before)

    def _judge(self, snapshot: Snapshot, slices: Iterator[int], closed: int) -> None:
        """A slice per turn of the loop, the first one at once: 10,000 in one go would hold up every packet.

        What is opened meanwhile is judged by its own set-up. A state that replaces this one has all judged anew.
        """
        found = next(slices, None) if self.snapshot is snapshot else None
        if found is not None:
            self.loop.call_soon(self._judge, snapshot, slices, closed + found)
        elif closed:
            self._log.info("connections closed by changed policies", count=closed)

    async def snapshot_changed(self) -> None:
        """Wait for the next snapshot."""
        await self._changed.wait()

    def _retain_tunnels(self, snapshot: Snapshot) -> None:
        """Retire the tunnels whose address no longer belongs to a workload that may answer there."""
        network = self.settings.network
        service_names = {name for service in snapshot.services.values() for name in service.subject_alt_names}

        # found by name or with the address of their node, so no address leads to them
        elsewhere = [one for one in snapshot.workloads.values() if one.host_network or not one.addresses]

        def wanted(key: PoolKey) -> bool:
            workload = snapshot.workload_by_address(network, key.address[0])
            if workload is None:
                return any(
                    one.identity in key.expected and (not one.addresses or key.address[0] in one.addresses)
                    for one in elsewhere
                )
            return workload.identity in key.expected or not service_names.isdisjoint(key.expected)

        for site in self.sites:
            site.pool.retain(wanted)

    def open_site(self, namespace: NetworkNamespace | None) -> Site:
        """A further place to make connections from; ``close_site`` it."""
        site = Site(self, namespace)
        self.sites[site] = None
        return site

    async def close_site(self, site: Site) -> None:
        """End what is being set up there, and cut its tunnels."""
        await site.close()
        self.sites.pop(site, None)

    async def close_sites(self) -> None:
        """The same for all, in the end."""
        for site in list(self.sites):
            await site.close()
        await self.lookups.close()

    async def settled(self) -> None:
        """Wait until no connection is being set up anywhere."""
        for site in list(self.sites):
            await site.settled()

    def tunnels(self) -> Iterator[Tunnel]:
        """Every outgoing tunnel that is not closed."""
        for site in list(self.sites):
            for _, tunnel in list(site.pool.tunnels()):
                yield tunnel

    def baggage(self, workload: Workload) -> str:
        """The ``baggage`` header of a workload, written once per snapshot."""
        text = self._baggage.get(workload.uid)
        if text is None:
            text = self._baggage[workload.uid] = encode_baggage(workload)
        return text

    # -- certificates ----------------------------------------------------------------------------------------

    async def certificate(self, identity: SpiffeId) -> WorkloadCertificate:
        """The certificate of a local identity. Raises :class:`IdentityError`."""
        found = self.store.peek(identity)
        if found is not None:
            return found
        try:
            return await self.store.get(identity)
        except CertError as error:
            raise IdentityError(
                error.code, f"no certificate for {identity}: {error}", hint=error.hint or "see the CA's log"
            ) from error

    # -- reports ---------------------------------------------------------------------------------------------

    def guard_tripped(self, remote: str, abuse: Abuse, message: str) -> None:
        """A peer spent a flood budget: count it and say who."""
        self.metrics.guard_trips.inc(abuse.value)
        self._log.warning(
            "flood guard tripped, tunnel closed", peer=remote, guard=abuse.value, detail=message
        )
