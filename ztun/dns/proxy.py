"""The DNS proxy of one pod: answers what the mesh knows, and passes everything else on."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import dns.rcode
import dns.rdatatype

from ztun.dns.limits import DnsLimits, InFlight
from ztun.dns.local import LocalAnswer, answer_locally
from ztun.dns.memory import Decision, Memory
from ztun.dns.messages import (
    MIN_UDP_BYTES,
    BadQuery,
    Query,
    answer,
    failure,
    read_header,
    read_query,
    server_failure,
    shortened,
    udp_room,
)
from ztun.dns.metrics import DnsMetrics, dns_labels
from ztun.dns.nameservers import Address
from ztun.dns.requests import Reply
from ztun.dns.stub import resolve_outside
from ztun.dns.tcp import TcpConnections
from ztun.dns.udp import UdpServer
from ztun.dns.upstream import Upstream
from ztun.dns.zone import MAX_ADDRESSES, Family, ZoneOptions
from ztun.errors import DnsError, ZtunError
from ztun.mesh.model import Workload, join_host_port
from ztun.mesh.snapshot import Snapshot
from ztun.telemetry.levels import DEBUG
from ztun.telemetry.logging import get_logger


@dataclass(frozen=True, slots=True)
class DnsSurroundings:
    """What the DNS proxies of a process have in common. ``in_flight`` counts the queries of all of them."""

    snapshot: Callable[[], Snapshot]
    nameservers: Callable[[], Sequence[Address]]
    metrics: DnsMetrics
    rng: random.Random
    options: Callable[[], ZoneOptions] = ZoneOptions
    limits: DnsLimits = field(default_factory=DnsLimits)
    in_flight: InFlight = field(default_factory=lambda: InFlight(DnsLimits().queries_of_process, "process"))


class DnsProxy:
    """Serves the queries of one pod.

    ``client`` gives the pod's workload, None while the mesh does not know it; ``wait_for_client`` waits for that
    and raises :class:`ZtunError` after a while. ``upstream`` is what everything in the pod's namespace asks.
    """

    def __init__(
        self,
        around: DnsSurroundings,
        client: Callable[[], Workload | None],
        wait_for_client: Callable[[], Awaitable[Workload]],
        upstream: Upstream,
    ) -> None:
        self._around = around
        self._client = client
        self._wait_for_client = wait_for_client
        self._loop = asyncio.get_running_loop()
        self.upstream = upstream
        self._in_flight = InFlight(around.limits.queries, "pod", around.in_flight)
        self._memory = Memory()
        self._tasks: set[asyncio.Task[None]] = set()
        self._udp: list[UdpServer] = []
        self._tcp: list[asyncio.Server] = []
        self._connections = TcpConnections(
            self._loop,
            lambda wire, peer, reply: self._receive(wire, peer, reply, udp=False),
            lambda: around.metrics.overloads.inc("connections"),
            around.limits,
        )
        self._log = get_logger("dns")

    # -- life ------------------------------------------------------------------------------------------------

    async def open(self, udp: Iterable[socket.socket], tcp: Iterable[socket.socket]) -> None:
        """Serve bound UDP sockets and bound TCP sockets, which are listened on here and closed with the proxy.

        Raises ``OSError`` when the kernel refuses; every socket is closed then.
        """
        udp, tcp = list(udp), list(tcp)
        try:
            await self._open(udp, tcp)
        except OSError:
            self.close()
            for sock in (*udp, *tcp):
                sock.close()
            raise

    async def _open(self, udp: Sequence[socket.socket], tcp: Sequence[socket.socket]) -> None:
        self.upstream.listening(_address(sock) for sock in (*udp, *tcp))
        for sock in udp:
            self._udp.append(
                UdpServer(
                    self._loop,
                    sock,
                    lambda wire, peer, reply: self._receive(wire, peer, reply, udp=True),
                )
            )
        for sock in tcp:
            sock.setblocking(False)
            backlog = self._around.limits.connections  # nobody who waits behind so many would be served
            sock.listen(backlog)  # the loop would not tell that it failed
            make = self._connections.accept
            self._tcp.append(await self._loop.create_server(make, sock=sock, backlog=backlog))

    def finish(self) -> None:
        """Leave new queries to another proxy that listens here, if there is one; those under way are answered."""
        for server in self._tcp:
            server.close()
        for listener in self._udp:
            listener.finish()

    def close(self) -> None:
        """Stop at once: no more queries, no more answers."""
        for server in self._tcp:
            server.close()
        self._connections.close()
        for listener in self._udp:
            listener.close()
        for task in self._tasks:
            task.cancel()

    async def closed(self) -> None:
        """Wait until nothing is left of what :meth:`close` has ended."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._tcp:
            await server.wait_closed()

    # -- queries ---------------------------------------------------------------------------------------------

    def _receive(self, wire: bytes, peer: Address, reply: Reply, *, udp: bool) -> None:
        try:
            self._serve(wire, peer, reply, udp=udp)
        except Exception as error:  # it would end the TCP connection, with the other queries on it
            self._log.error("internal error while serving a query", exc_info=error)
            reply(server_failure(wire))

    def _serve(self, wire: bytes, peer: Address, reply: Reply, *, udp: bool) -> None:
        ours, client = self.upstream.sent(peer), self._client()
        if client is not None and not ours:
            decision = self._memory.recall(wire, self._circumstances(client), udp=udp)
            if decision is not None:
                self._carry_out(decision, client, reply, udp=udp)
                return
        try:
            query = read_query(wire)
        except BadQuery as error:
            self._log.debug("not a query", peer=join_host_port(*peer), error=str(error))
            reply(error.reply)
            return
        if ours:
            self._log.warning(
                "a query to a nameserver came back to the proxy",
                peer=join_host_port(*peer),
                hint="the proxy's own packets need a mark (PACKET_MARK) that the redirect leaves alone",
            )
            reply(failure(query, dns.rcode.SERVFAIL))
        elif client is None:
            self._start(self._answer_late(query, reply, udp=udp), query, None, reply, udp=udp)
        else:
            self._carry_out(self._decide(query, client, udp=udp), client, reply, udp=udp)

    def _circumstances(self, client: Workload) -> object:
        """What the answer to a query depends on."""
        return self._around.snapshot().generation, client.uid, self._around.options()

    def _decide(self, query: Query, client: Workload, *, udp: bool) -> Decision:
        around = self._around
        found = answer_locally(
            query, around.snapshot(), client, rng=around.rng, options=around.options(), udp=udp
        )
        decision = Decision(query, found)
        self._memory.keep(decision, self._circumstances(client), udp=udp)
        return decision

    def _carry_out(self, decision: Decision, client: Workload, reply: Reply, *, udp: bool) -> None:
        query, found = decision.query, decision.answer
        if found is None or found.outside:
            work = self._go_outside(decision, client, reply, udp=udp)
            self._start(work, query, client, reply, udp=udp)
            return
        self._count(query, client, udp=udp)
        self._report(query, client, found.result, found.endpoints)
        reply(found.wire)

    def _start(
        self,
        work: Coroutine[None, None, None],
        query: Query,
        client: Workload | None,
        reply: Reply,
        *,
        udp: bool,
    ) -> None:
        """Go on in a task of its own, if there is room for one more."""
        full = self._in_flight.take()
        if full is not None:
            work.close()
            self._around.metrics.overloads.inc(full.name)
            self._count(query, client, udp=udp)
            self._report(query, client, f"too many queries are under way ({full.name})", 0)
            reply(failure(query, dns.rcode.SERVFAIL))
            return
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, query, reply))

    def _ended(self, query: Query, reply: Reply, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._in_flight.give_back()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("internal error while serving a query", exc_info=error)
            reply(failure(query, dns.rcode.SERVFAIL))

    async def _answer_late(self, query: Query, reply: Reply, *, udp: bool) -> None:
        """A pod that has just started is ahead of its documents."""
        try:
            client = await self._wait_for_client()
        except ZtunError as error:
            self._count(query, None, udp=udp)
            self._report(query, None, f"unknown source ({error})", 0)
            reply(failure(query, dns.rcode.SERVFAIL))
            return
        decision = self._decide(query, client, udp=udp)
        if decision.answer is None or decision.answer.outside:
            await self._go_outside(decision, client, reply, udp=udp)
        else:
            self._carry_out(decision, client, reply, udp=udp)

    async def _go_outside(self, decision: Decision, client: Workload, reply: Reply, *, udp: bool) -> None:
        query = decision.query
        metrics, labels = self._around.metrics, dns_labels(query.type_text, udp=udp, client=client)
        metrics.requests.inc(*labels)
        metrics.upstream_requests.inc(*labels)
        started = self._loop.time()
        try:
            if decision.answer is None:
                wire = await self._forward(query, client, udp=udp)
            else:
                wire = await self._follow_alias(query, client, decision.answer, udp=udp)
        except DnsError as error:
            metrics.upstream_failures.inc(*labels)
            self._report(query, client, f"forwarding failed ({error})", 0)
            reply(failure(query, dns.rcode.SERVFAIL))
            return
        finally:
            metrics.upstream_seconds.observe(self._loop.time() - started, *labels)
        reply(wire)

    async def _forward(self, query: Query, client: Workload, *, udp: bool) -> bytes:
        """What a nameserver answers. Raises :class:`DnsError`."""
        wire = await self.upstream.ask(query, udp=udp)
        header = read_header(wire)
        self._report(query, client, "forwarded", header.answers if header is not None else 0)
        if udp and len(wire) > MIN_UDP_BYTES and len(wire) > udp_room(query):
            return shortened(query, wire)
        return wire

    async def _follow_alias(self, query: Query, client: Workload, found: LocalAnswer, *, udp: bool) -> bytes:
        """Our answer with the addresses that a name outside has. Raises :class:`DnsError`."""
        family: Family = 4 if query.rdtype == dns.rdatatype.A else 6
        try:
            addresses = await resolve_outside(self.upstream, found.outside, family, self._around.rng)
        except DnsError as error:
            if error.code not in ("dns_empty", "dns_lookup"):
                raise  # a resolver asks again; that there is no address it would believe
            addresses = ()  # the alias exists, if nothing that it stands for
        self._report(query, client, found.result, len(addresses))
        try:
            return answer(query, addresses[:MAX_ADDRESSES], canonical=found.outside, udp=udp)
        except BadQuery as error:
            return error.reply

    # -- reports ---------------------------------------------------------------------------------------------

    def _count(self, query: Query, client: Workload | None, *, udp: bool) -> None:
        self._around.metrics.requests.inc(*dns_labels(query.type_text, udp=udp, client=client))

    def _report(self, query: Query, client: Workload | None, result: str, endpoints: int) -> None:
        if not self._log.enabled(DEBUG):
            return
        self._log.debug(
            "dns request",
            **{
                "src.workload": client.name if client is not None else "unknown",
                "src.namespace": client.namespace if client is not None else "unknown",
                "query": query.type_text,
                "domain": query.domain,
                "result": result,
                "endpoints": endpoints,
            },
        )


def _address(sock: socket.socket) -> Address:
    ip, port = sock.getsockname()[:2]
    return ip, port
