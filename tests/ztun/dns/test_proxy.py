"""The proxy of one pod, asked by a resolver library over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
import pytest

from tests.ztun.dns.directory import CLIENT, kube, snapshot
from tests.ztun.dns.ground import PORT, Ground
from tests.ztun.dns.nameserver import Asked, Nameserver, answering, silent
from ztun.dns.limits import DnsLimits, InFlight
from ztun.dns.requests import Reply
from ztun.dns.tcp import TcpConnections
from ztun.dns.zone import ZoneOptions
from ztun.mesh.model import Workload

pytestmark = [pytest.mark.net, pytest.mark.asyncio]


class TestNamesOfTheMesh:
    @pytest.mark.parametrize("tcp", [False, True])
    async def test_a_resolver_finds_a_service(self, ground: Ground, tcp: bool) -> None:
        resolver = ground.resolver()
        answer = await resolver.resolve("web.app.svc.cluster.local", "A", tcp=tcp)
        assert [record.address for record in answer] == ["10.96.0.1"]
        assert answer.rrset is not None
        assert answer.rrset.ttl == 30
        assert answer.response.flags & dns.flags.AA
        with pytest.raises(dns.resolver.NoAnswer):
            await resolver.resolve("web.app.svc.cluster.local", "AAAA", tcp=tcp)

    async def test_with_the_search_list_of_a_pod(self, ground: Ground, nameserver: Nameserver) -> None:
        """As a C library with ndots:5: suffix after suffix, then the name itself."""
        suffixes = ("app.svc.cluster.local", "svc.cluster.local", "cluster.local")
        search = [dns.name.from_text(suffix) for suffix in suffixes]
        resolver = ground.resolver(search=search, ndots=5)
        for name, canonical, ip in (
            ("web", "web.app.svc.cluster.local.", "10.96.0.1"),
            ("shop.other", "shop.other.", "10.96.0.3"),
            ("www.example.com", "www.example.com.", "240.240.0.1"),
            ("a.wild.example", "a.wild.example.app.svc.cluster.local.", "240.240.1.1"),
        ):
            answer = await resolver.resolve(name, "A", search=True)
            assert [record.address for record in answer] == [ip]
            assert answer.canonical_name.to_text() == canonical
        assert nameserver.asked == []

    async def test_both_families_of_a_headless_service(self, ground: Ground) -> None:
        found = await ground.resolver().resolve_name("db.app")
        assert sorted(found.addresses()) == ["10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2"]

    async def test_a_large_answer_is_truncated_and_complete_by_tcp(self, ground: Ground) -> None:
        ground.mesh = snapshot(kube("many", "app", *(f"10.99.0.{n}" for n in range(256))))
        query = dns.message.make_query("many", "A")
        short = await ground.udp(query)
        assert short.flags & dns.flags.TC
        assert 25 < len(short.answer[0]) < 32
        for use in (
            await ground.tcp(query),
            (await dns.asyncquery.udp_with_fallback(query, ground.ip, port=PORT))[0],
        ):
            assert len(use.answer[0]) == 256
        roomy = await ground.udp(dns.message.make_query("many", "A", use_edns=0, payload=8192))
        assert len(roomy.answer[0]) == 256

    async def test_case_is_kept(self, ground: Ground) -> None:
        reply = await ground.udp(dns.message.make_query("wEb.aPp", "A"))
        assert reply.question[0].name.labels == reply.answer[0].name.labels == (b"wEb", b"aPp", b"")

    async def test_a_new_snapshot_counts_at_once(self, ground: Ground, nameserver: Nameserver) -> None:
        query = dns.message.make_query("fresh", "A")
        assert (await ground.udp(query)).rcode() == dns.rcode.NXDOMAIN
        for generation, ip in ((1, "10.96.7.7"), (2, "10.96.7.8")):
            ground.mesh = snapshot(kube("fresh", "app", ip), generation=generation)
            assert (await ground.udp(query)).answer[0][0].address == ip
        ground.mesh = snapshot(generation=3)
        assert (await ground.udp(query)).rcode() == dns.rcode.NXDOMAIN

    @pytest.mark.parametrize("tcp", [False, True])
    async def test_the_same_question_again(self, ground: Ground, nameserver: Nameserver, tcp: bool) -> None:
        """The answer has the id of the query it belongs to, and everything is counted."""
        ask = ground.tcp if tcp else ground.udp
        protocol = ("tcp" if tcp else "udp", "client", "v1")
        for number in range(4):
            reply = await ask(dns.message.make_query("wEb", "A", id=100 + number))
            assert (reply.id, reply.answer[0][0].address) == (100 + number, "10.96.0.1")
            assert reply.answer[0].name.labels == (b"wEb", b"")
            reply = await ask(dns.message.make_query("out.example", "A", id=200 + number))
            assert (reply.id, reply.rcode()) == (200 + number, dns.rcode.NXDOMAIN)
        assert [asked.message.id for asked in nameserver.asked] == [200, 201, 202, 203]
        assert ground.count("requests", "a", *protocol) == 8
        assert ground.count("upstream_requests", "a", *protocol) == 4

    async def test_who_asks_may_become_somebody_else(self, ground: Ground) -> None:
        query = dns.message.make_query("web", "A")
        assert (await ground.udp(query)).answer[0][0].address == "10.96.0.1"
        ground.client = dataclasses.replace(CLIENT, uid="another", namespace="other")
        assert (await ground.udp(query)).answer[0][0].address == "10.96.0.2"

    async def test_several_addresses_take_turns(self, ground: Ground) -> None:
        query = dns.message.make_query("db", "A")
        first = {(await ground.udp(query)).answer[0][0].address for _ in range(40)}
        assert first == {"10.1.0.1", "10.1.0.2"}

    async def test_ipv6_clients(self, ground: Ground) -> None:
        await ground.open("::1")
        reply = await dns.asyncquery.udp(dns.message.make_query("web", "A"), "::1", port=PORT)
        assert reply.answer[0][0].address == "10.96.0.1"
        reply = await dns.asyncquery.tcp(dns.message.make_query("web", "A"), "::1", port=PORT)
        assert reply.answer[0][0].address == "10.96.0.1"

    async def test_getaddrinfo_order_of_two_queries_on_one_socket(self, ground: Ground) -> None:
        """glibc asks for A and AAAA from one port at once, and tells the answers apart by their ids."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((ground.ip, PORT))
            for number, kind in ((1, "A"), (2, "AAAA")):
                sock.send(dns.message.make_query("dual", kind, id=number).to_wire())
            replies = [dns.message.from_wire(await loop.sock_recv(sock, 512)) for _ in range(2)]
        assert {reply.id: reply.answer[0][0].address for reply in replies} == {1: "10.96.0.4", 2: "fd00::4"}


class TestForwarding:
    @pytest.mark.parametrize("tcp", [False, True])
    async def test_bytes_go_out_and_come_back_as_they_are(
        self, ground: Ground, nameserver: Nameserver, tcp: bool
    ) -> None:
        answers: list[bytes] = []

        def behave(asked: Asked) -> None:
            message = dns.message.make_response(asked.message, recursion_available=True)
            message.use_edns(0, payload=1400, options=[dns.edns.GenericOption(65_001, b"option")])
            message.flags |= dns.flags.AD
            for text, section in (
                ("_sip._tcp.example.org. 77 IN SRV 1 2 5060 Sip.Example.org.", message.answer),
                ("example.org. 78 IN NS ns.example.org.", message.authority),
                ("sip.example.org. 79 IN A 192.0.2.1", message.additional),
                ("sip.example.org. 80 IN TYPE65399 \\# 3 010203", message.additional),
            ):
                name, ttl, rdclass, rdtype, data = text.split(maxsplit=4)
                section.append(dns.rrset.from_text(name, int(ttl), rdclass, rdtype, data))
            answers.append(message.to_wire())
            asked.send(answers[-1])

        nameserver.behave = behave
        query = dns.message.make_query(
            "_sIp._tcp.Example.org", "SRV", use_edns=0, payload=1400, want_dnssec=True, id=4711
        )
        query.use_edns(0, dns.flags.DO, 1400, options=[dns.edns.GenericOption(65_002, b"mine")])
        wire = query.to_wire()
        if tcp:
            reader, writer = await asyncio.open_connection(ground.ip, PORT)
            writer.write(len(wire).to_bytes(2, "big") + wire)
            reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            writer.close()
            await writer.wait_closed()
        else:
            reply = await ground.raw(wire)
        assert [(one.wire, one.udp) for one in nameserver.asked] == [(wire, not tcp)]
        assert answers == [reply]

    @pytest.mark.parametrize(
        ("name", "rdtype", "record"),
        [
            ("web.app.svc.cluster.local", "SRV", "1 2 80 x."),
            ("web", "HTTPS", '1 . alpn="h2"'),
            ("1.0.96.10.in-addr.arpa", "PTR", "web.app."),
            ("web", "TXT", '"text"'),
            ("www.example.org", "A", "192.0.2.9"),
            ("www.example.org", "AAAA", "2001:db8::9"),
            ("novip.app", "A", "192.0.2.10"),
            ("secret.other", "A", "192.0.2.11"),
        ],
    )
    async def test_what_is_not_ours(
        self, ground: Ground, nameserver: Nameserver, name: str, rdtype: str, record: str
    ) -> None:
        nameserver.behave = answering(f"{name}. 60 IN {rdtype} {record}")
        answer = await ground.resolver().resolve(name, rdtype)
        assert answer.rrset is not None
        assert answer.rrset[0].to_text() == record
        assert not answer.response.flags & dns.flags.AA

    async def test_an_unknown_name_stays_unknown(self, ground: Ground, nameserver: Nameserver) -> None:
        with pytest.raises(dns.resolver.NXDOMAIN):
            await ground.resolver().resolve("nobody.example.org", "A")

    async def test_truncation_by_the_nameserver_leads_the_client_to_tcp(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        records = [f"big.example.org. 60 IN A 192.0.2.{n}" for n in range(200)]

        def behave(asked: Asked) -> None:
            asked.send(asked.truncated() if asked.udp else asked.response(*records))

        nameserver.behave = behave
        answer = await ground.resolver().resolve("big.example.org", "A")
        assert [one.udp for one in nameserver.asked] == [True, False]
        assert len(answer) == 200

    async def test_a_nameserver_that_sends_more_than_the_client_takes(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        nameserver.behave = answering(*(f"big.example.org. 60 IN A 192.0.2.{n}" for n in range(100)))
        reply = dns.message.from_wire(
            await ground.raw(dns.message.make_query("big.example.org", "A").to_wire())
        )
        assert reply.flags & dns.flags.TC
        assert reply.answer == []
        roomy = dns.message.make_query("big.example.org", "A", use_edns=0, payload=4096)
        assert (await ground.udp(roomy)).answer

    async def test_sockets_come_from_the_factory_and_are_closed(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        await ground.udp(dns.message.make_query("nobody.example.org", "A"))
        await ground.tcp(dns.message.make_query("nobody.example.org", "A"))
        kinds = [asked.udp for asked in nameserver.asked]
        assert kinds == [True, False]
        assert len(ground.made) == 2
        assert all(sock.fileno() == -1 for sock in ground.made)

    async def test_an_external_name(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = answering(
            "cdn.example.net. 60 IN CNAME edge.example.net.", "edge.example.net. 60 IN A 192.0.2.8"
        )
        for _ in range(2):
            answer = await ground.resolver().resolve("Cdn.app.svc.cluster.local", "A")
            assert [rrset.to_text() for rrset in answer.response.answer] == [
                "Cdn.app.svc.cluster.local. 30 IN CNAME cdn.example.net.",
                "cdn.example.net. 30 IN A 192.0.2.8",
            ]
        assert [asked.message.question[0].name.to_text() for asked in nameserver.asked] == [
            "cdn.example.net."
        ] * 2
        assert ground.count("upstream_requests", "a") == 2

    async def test_an_external_name_of_more_labels_than_its_question(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        outside = "store.c9ak.eu-west-1.rds.example.net."
        nameserver.behave = answering(f"{outside} 60 IN A 192.0.2.8")
        for ask in (ground.udp, ground.tcp):
            reply = await ask(dns.message.make_query("store.app.svc.cluster.local", "A"))
            assert [rrset.to_text() for rrset in reply.answer] == [
                f"store.app.svc.cluster.local. 30 IN CNAME {outside}",
                f"{outside} 30 IN A 192.0.2.8",
            ]

    async def test_an_external_name_of_nothing(self, ground: Ground, nameserver: Nameserver) -> None:
        """The alias exists all the same."""
        reply = await ground.udp(dns.message.make_query("cdn", "A"))
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        ground.nameservers = []
        assert (await ground.tcp(dns.message.make_query("cdn", "A"))).rcode() == dns.rcode.SERVFAIL

    @pytest.mark.parametrize(
        "reply",
        [
            lambda asked: asked.response(rcode=dns.rcode.SERVFAIL),
            lambda asked: asked.response(rcode=dns.rcode.REFUSED),
            lambda asked: asked.response("cdn.example.net. 60 IN A 192.0.2.8")[:-2],
        ],
        ids=["failing", "refusing", "cut off"],
    )
    async def test_an_external_name_while_the_nameserver_fails(
        self, ground: Ground, nameserver: Nameserver, reply: Callable[[Asked], bytes]
    ) -> None:
        """Clients would take an answer without addresses as final."""
        nameserver.behave = lambda asked: asked.send(reply(asked))
        assert (await ground.udp(dns.message.make_query("cdn", "A"))).rcode() == dns.rcode.SERVFAIL
        assert ground.count("upstream_failures", "a") == 1
        nameserver.behave = answering("cdn.example.net. 60 IN A 192.0.2.8")
        assert (await ground.udp(dns.message.make_query("cdn", "A"))).answer

    async def test_without_nameservers(self, ground: Ground) -> None:
        reply = await ground.udp(dns.message.make_query("nobody.example.org", "A"))
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert ground.count("upstream_failures", "a") == 1


class TestTcp:
    async def test_several_queries_on_one_connection(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = answering("x. 60 IN TXT far")
        reader, writer = await asyncio.open_connection(ground.ip, PORT)
        for number, (name, kind) in enumerate([("web", "A"), ("out.example", "TXT"), ("dual", "AAAA")] * 20):
            wire = dns.message.make_query(name, kind, id=number).to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
        seen = set()
        for _ in range(60):
            size = int.from_bytes(await reader.readexactly(2), "big")
            reply = dns.message.from_wire(await reader.readexactly(size))
            assert reply.rcode() == dns.rcode.NOERROR
            seen.add(reply.id)
        assert seen == set(range(60))
        writer.close()
        await writer.wait_closed()

    async def test_a_query_in_single_bytes(self, ground: Ground) -> None:
        reader, writer = await asyncio.open_connection(ground.ip, PORT)
        wire = dns.message.make_query("web", "A").to_wire()
        for byte in len(wire).to_bytes(2, "big") + wire:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        size = int.from_bytes(await reader.readexactly(2), "big")
        assert dns.message.from_wire(await reader.readexactly(size)).answer
        writer.close()
        await writer.wait_closed()

    async def test_a_client_that_has_finished_asking_gets_its_answer(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        nameserver.behave = silent
        reader, writer = await asyncio.open_connection(ground.ip, PORT)
        wire = dns.message.make_query("nobody.example.org", "A").to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        writer.write_eof()
        asked = await nameserver.until_asked()
        asked.send(asked.response(rcode=dns.rcode.NXDOMAIN))
        size = int.from_bytes(await reader.readexactly(2), "big")
        assert dns.message.from_wire(await reader.readexactly(size)).rcode() == dns.rcode.NXDOMAIN
        assert await reader.read() == b""
        writer.close()

    async def test_a_connection_that_comes_while_the_pod_goes(self, ground: Ground) -> None:
        """Accepted by the loop before the end and handed over after it."""

        def receive(wire: bytes, peer: tuple[str, int], reply: Reply) -> None:
            raise AssertionError("nobody is served any more")

        overloads: list[None] = []
        loop, limits = asyncio.get_running_loop(), DnsLimits()
        connections = TcpConnections(loop, receive, lambda: overloads.append(None), limits)
        connections.close()
        ours, theirs = socket.socketpair()
        await loop.connect_accepted_socket(connections.accept, ours)
        assert connections.open == set()
        assert overloads == []
        reader, writer = await asyncio.open_connection(sock=theirs)
        assert await reader.read() == b""
        writer.close()


class TestClients:
    async def test_a_pod_that_nobody_knows(self, ground: Ground) -> None:
        ground.client = None
        reply = await ground.udp(dns.message.make_query("web", "A"))
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert ground.count("requests", "a", "udp", "unknown", "unknown") == 1

    async def test_a_pod_that_is_ahead_of_its_documents(self, ground: Ground, nameserver: Nameserver) -> None:
        known: asyncio.Future[Workload] = asyncio.get_running_loop().create_future()

        async def wait() -> Workload:
            return await asyncio.shield(known)

        ground.client = None
        ground.wait_for_client = wait
        asking = [
            asyncio.ensure_future(ground.udp(dns.message.make_query(name, "A")))
            for name in ("web", "nobody.example.org")
        ]
        while ground.around.in_flight.count < 2:
            await asyncio.sleep(0)
        known.set_result(CLIENT)
        local, foreign = await asyncio.gather(*asking)
        assert local.answer[0][0].address == "10.96.0.1"
        assert foreign.rcode() == dns.rcode.NXDOMAIN
        assert ground.count("requests", "a") == 2


class TestReports:
    async def test_the_counters_of_istio(self, ground: Ground, nameserver: Nameserver) -> None:
        for name, kind in (("web", "A"), ("web", "AAAA"), ("www.example.org", "HTTPS"), ("web", "TYPE65399")):
            await ground.udp(dns.message.make_query(name, kind))
        await ground.tcp(dns.message.make_query("web", "A"))
        assert ground.count("requests", "a") == 1
        assert ground.count("requests", "a", "tcp", "client", "v1") == 1
        assert ground.count("requests", "aaaa") == 1
        assert ground.count("requests", "unknown") == 1
        assert ground.count("upstream_requests", "a") == 0
        assert ground.count("upstream_requests", "https") == 1
        assert ground.count("upstream_failures", "https") == 0
        (count,) = [
            sample.value
            for sample in ground.families.upstream_seconds.collect().samples
            if sample.name.endswith("_count") and sample.labels["request_query_type"] == "https"
        ]
        assert count == 1

    async def test_the_names_are_those_of_ztunnel(self, ground: Ground) -> None:
        families = ground.families
        for family, name in (
            (families.requests, "istio_dns_requests"),
            (families.upstream_requests, "istio_dns_upstream_requests"),
            (families.upstream_failures, "istio_dns_upstream_failures"),
        ):
            metric = family.collect()
            assert metric.name == name
            assert "(unstable)" in metric.documentation
        histogram = families.upstream_seconds
        assert histogram.collect().name == "istio_dns_upstream_request_duration_seconds"


class TestDefects:
    """An error of ours that nobody expected is an answer to its query, and harms no other."""

    @pytest.fixture
    def broken(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
        def options() -> ZoneOptions:
            raise ZeroDivisionError

        monkeypatch.setattr(ground, "options", options)
        return ground

    async def test_by_udp(self, broken: Ground, caplog: pytest.LogCaptureFixture) -> None:
        query = dns.message.make_query("web", "A")
        reply = await broken.udp(query)
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert reply.question == query.question
        assert "internal error while serving a query" in caplog.text

    async def test_by_tcp_with_others_behind_it(self, broken: Ground) -> None:
        reader, writer = await asyncio.open_connection(broken.ip, PORT)
        for number in range(20):
            wire = dns.message.make_query("web", "A", id=number).to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
        for number in range(20):
            size = int.from_bytes(await reader.readexactly(2), "big")
            reply = dns.message.from_wire(await reader.readexactly(size))
            assert (reply.id, reply.rcode()) == (number, dns.rcode.SERVFAIL)
        writer.close()
        await writer.wait_closed()


class TestLimits:
    async def test_more_than_a_pod_may_ask_at_once(self) -> None:
        async with Ground(DnsLimits(queries=3)) as ground, Nameserver(ground.addresses, silent) as nameserver:
            ground.behind(nameserver)
            waiting = [
                asyncio.ensure_future(ground.udp(dns.message.make_query(f"n{n}.example.org", "A")))
                for n in range(3)
            ]
            await nameserver.until_asked(3)
            refused = await ground.udp(dns.message.make_query("n4.example.org", "A"))
            assert refused.rcode() == dns.rcode.SERVFAIL
            assert ground.families.overloads.value("pod") == 1
            local = await ground.udp(dns.message.make_query("web", "A"))
            assert local.answer
            for asked in nameserver.asked:
                asked.send(asked.response())
            assert [one.rcode() for one in await asyncio.gather(*waiting)] == [dns.rcode.NOERROR] * 3
            nameserver.behave = answering("x. 1 IN A 192.0.2.1")
            assert (await ground.udp(dns.message.make_query("n5.example.org", "A"))).answer

    async def test_more_than_the_process_may_ask_at_once(self) -> None:
        shared = InFlight(1, "process")
        async with (
            Ground(in_flight=shared) as ground,
            Nameserver(ground.addresses, silent) as nameserver,
        ):
            ground.behind(nameserver)
            waiting = asyncio.ensure_future(ground.udp(dns.message.make_query("a.example.org", "A")))
            await nameserver.until_asked()
            refused = await ground.tcp(dns.message.make_query("b.example.org", "A"))
            assert refused.rcode() == dns.rcode.SERVFAIL
            assert ground.families.overloads.value("process") == 1
            asked = nameserver.asked[0]
            asked.send(asked.response())
            await waiting
            assert shared.count == 0

    async def test_closing_ends_what_is_under_way(self) -> None:
        shared = InFlight(10, "process")
        async with Ground(in_flight=shared) as ground, Nameserver(ground.addresses, silent) as nameserver:
            ground.behind(nameserver)
            reader, writer = await asyncio.open_connection(ground.ip, PORT)
            wire = dns.message.make_query("a.example.org", "A").to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            await nameserver.until_asked()
            ground.proxy.close()
            await ground.proxy.closed()
            assert shared.count == 0
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
