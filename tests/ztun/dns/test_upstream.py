"""Asking nameservers: one after the other, and believing only answers to what was asked."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

import dns.message
import dns.rcode
import pytest

from tests.ztun.dns.ground import PORT, Ground
from tests.ztun.dns.nameserver import Asked, Nameserver, answering, open_sockets, silent
from ztun.dns.limits import DnsLimits
from ztun.dns.messages import read_query
from ztun.dns.stub import resolve_outside
from ztun.dns.upstream import Upstream
from ztun.errors import DnsError

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

GOOD = "www.example.org. 60 IN A 192.0.2.1"
IMPATIENT = DnsLimits(patience=0.01)


def question(name: str = "www.example.org", kind: str = "A", number: int = 77) -> dns.message.Message:
    return dns.message.make_query(name, kind, id=number)


def address(reply: dns.message.Message) -> str:
    text: str = reply.answer[0][0].address
    return text


def failing(rcode: dns.rcode.Rcode) -> Callable[[Asked], None]:
    return lambda asked: asked.send(asked.response(rcode=rcode))


class TestTheNextNameserver:
    @pytest.mark.parametrize("tcp", [False, True])
    async def test_after_one_that_is_not_there(self, ground: Ground, tcp: bool) -> None:
        async with Nameserver(ground.addresses, answering(GOOD)) as good:
            ground.nameservers = [(ground.addresses.take(), 53535), good.address]
            ask = ground.tcp if tcp else ground.udp
            assert address(await ask(question())) == "192.0.2.1"
        assert len(ground.made) == 2

    @pytest.mark.parametrize("tcp", [False, True])
    async def test_after_one_that_says_nothing(self, tcp: bool) -> None:
        async with (
            Ground(IMPATIENT) as ground,
            Nameserver(ground.addresses, silent) as mute,
            Nameserver(ground.addresses, answering(GOOD)) as good,
        ):
            ground.behind(mute, good)
            ask = ground.tcp if tcp else ground.udp
            assert address(await ask(question())) == "192.0.2.1"
            assert len(mute.asked) == len(good.asked) == 1

    async def test_the_first_may_still_answer(self) -> None:
        async with (
            Ground(IMPATIENT) as ground,
            Nameserver(ground.addresses, silent) as slow,
            Nameserver(ground.addresses, silent) as mute,
        ):
            ground.behind(slow, mute)
            waiting = asyncio.ensure_future(ground.udp(question()))
            await mute.until_asked()
            asked = await slow.until_asked()
            asked.send(asked.response(GOOD))
            assert address(await waiting) == "192.0.2.1"

    @pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP])
    async def test_after_one_that_cannot(self, ground: Ground, rcode: dns.rcode.Rcode) -> None:
        async with (
            Nameserver(ground.addresses, failing(rcode)) as poor,
            Nameserver(ground.addresses, answering(GOOD)) as good,
        ):
            ground.behind(poor, good)
            assert address(await ground.udp(question())) == "192.0.2.1"
            ground.behind(poor, poor)
            reply = await ground.udp(question())
            assert reply.rcode() == rcode
            assert ground.count("upstream_failures", "a") == 0

    @pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.FORMERR, dns.rcode.NOERROR])
    async def test_not_after_an_answer_about_the_name(self, ground: Ground, rcode: dns.rcode.Rcode) -> None:
        async with (
            Nameserver(ground.addresses, failing(rcode)) as first,
            Nameserver(ground.addresses, answering(GOOD)) as second,
        ):
            ground.behind(first, second)
            assert (await ground.udp(question())).rcode() == rcode
            assert second.asked == []

    async def test_when_all_are_silent_the_client_is_told(self) -> None:
        async with (
            Ground(DnsLimits(exchange=0.05, patience=0.01)) as ground,
            Nameserver(ground.addresses, silent) as mute,
        ):
            ground.behind(mute)
            for ask in (ground.udp, ground.tcp):
                assert (await ask(question())).rcode() == dns.rcode.SERVFAIL
            assert ground.count("upstream_failures", "a") == 1
            assert ground.count("upstream_failures", "a", "tcp", "client", "v1") == 1

    async def test_a_tcp_connection_that_ends_early(self, ground: Ground) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(2)
            writer.write(b"\0")
            writer.close()

        ip = ground.addresses.take()
        server = await asyncio.start_server(hang_up, ip, 53535)
        ground.nameservers = [(ip, 53535)]
        assert (await ground.tcp(question())).rcode() == dns.rcode.SERVFAIL
        server.close()
        await server.wait_closed()


class TestForgedAnswers:
    async def test_only_the_answer_to_the_question_counts(
        self, ground: Ground, nameserver: Nameserver
    ) -> None:
        def behave(asked: Asked) -> None:
            for forged in (
                dns.message.make_response(question(number=78)),
                dns.message.make_response(question("www.example.com")),
                dns.message.make_response(question(kind="AAAA")),
                asked.message,
            ):
                asked.send(forged.to_wire())
            asked.send(b"nonsense")
            asked.send(b"")
            asked.send(asked.response(GOOD))

        nameserver.behave = behave
        assert address(await ground.udp(question())) == "192.0.2.1"

    async def test_by_tcp_too(self, ground: Ground, nameserver: Nameserver) -> None:
        def behave(asked: Asked) -> None:
            asked.send(dns.message.make_response(question(number=78)).to_wire())
            asked.send(asked.response(GOOD))

        nameserver.behave = behave
        assert address(await ground.tcp(question())) == "192.0.2.1"

    async def test_somebody_who_tries_all_ids(self, ground: Ground, nameserver: Nameserver) -> None:
        def behave(asked: Asked) -> None:
            for number in range(100, 200):
                asked.send(dns.message.make_response(question(number=number)).to_wire())

        nameserver.behave = behave
        assert (await ground.udp(question())).rcode() == dns.rcode.SERVFAIL

    async def test_answers_from_elsewhere_do_not_arrive(self, ground: Ground, nameserver: Nameserver) -> None:
        elsewhere = ground.addresses.take()

        def behave(asked: Asked) -> None:
            for ip, port in ((elsewhere, 53535), (nameserver.ip, 0)):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forger:
                    forger.bind((ip, port))
                    forger.sendto(asked.response("www.example.org. 60 IN A 203.0.113.66"), asked.peer)
            asked.send(asked.response(GOOD))

        nameserver.behave = behave
        assert address(await ground.udp(question())) == "192.0.2.1"


class TestLoops:
    async def test_the_proxy_itself_is_no_nameserver(self, ground: Ground) -> None:
        ground.nameservers = [(ground.ip, PORT)]
        assert (await ground.udp(question())).rcode() == dns.rcode.SERVFAIL
        assert ground.made == []

    @pytest.mark.parametrize("tcp", [False, True])
    async def test_a_redirect_that_brings_queries_back(
        self, ground: Ground, nameserver: Nameserver, tcp: bool
    ) -> None:
        """Without a mark on its packets the proxy's own queries are captured like the pod's."""
        made = ground.proxy.upstream._make_socket

        def captured(family: int, kind: int) -> socket.socket:
            return Redirected(made(family, kind), (ground.ip, PORT))

        ground.proxy.upstream._make_socket = captured
        ask = ground.tcp if tcp else ground.udp
        assert (await ask(question())).rcode() == dns.rcode.SERVFAIL
        assert nameserver.asked == []
        assert len(ground.made) == 1
        assert ground.around.in_flight.count == 0


class Redirected(socket.socket):
    """What nftables does to a connection: it goes somewhere else, and the application does not notice."""

    def __init__(self, sock: socket.socket, target: tuple[str, int]) -> None:
        super().__init__(sock.family, sock.type, 0, sock.detach())
        self._target = target

    def connect(self, address: object) -> None:
        super().connect(self._target)


class TestResolvingForOurselves:
    async def ask(self, upstream: Upstream, host: str = "www.example.org") -> tuple[str, ...]:
        return await resolve_outside(upstream, host, 4, random.Random(1))

    async def test_along_aliases(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = answering(
            "www.example.org. 60 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 192.0.2.5"
        )
        assert await self.ask(ground.proxy.upstream) == ("192.0.2.5",)

    async def test_by_tcp_when_it_is_long(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = lambda asked: asked.send(
            asked.truncated()
            if asked.udp
            else asked.response(*(f"www.example.org. 60 IN A 192.0.2.{n}" for n in range(200)))
        )
        assert len(await self.ask(ground.proxy.upstream)) == 200

    @pytest.mark.parametrize(
        ("behave", "code"),
        [
            (failing(dns.rcode.NXDOMAIN), "dns_lookup"),
            (failing(dns.rcode.SERVFAIL), "dns_server_failure"),
            (failing(dns.rcode.REFUSED), "dns_server_failure"),
            (failing(dns.rcode.NOERROR), "dns_empty"),
            (answering("www.example.org. 60 IN CNAME www.example.org."), "dns_server_failure"),
            (lambda asked: asked.send(asked.response(GOOD)[:-2]), "dns_server_failure"),
        ],
        ids=["unknown", "failing", "refusing", "empty", "alias of itself", "cut off"],
    )
    async def test_what_fails(
        self, ground: Ground, nameserver: Nameserver, behave: Callable[[Asked], None], code: str
    ) -> None:
        nameserver.behave = behave
        with pytest.raises(DnsError) as caught:
            await self.ask(ground.proxy.upstream)
        assert (caught.value.code, caught.value.stage) == (code, "dns")


async def test_no_descriptors_left() -> None:
    def none_left(family: int, kind: int) -> socket.socket:
        raise OSError(24, "Too many open files")

    upstream = Upstream(lambda: [("192.0.2.1", 53)], none_left, DnsLimits())
    for udp in (True, False):
        with pytest.raises(DnsError) as caught:
            await upstream.ask(read_query(question().to_wire()), udp=udp)
        assert caught.value.code == "no_descriptors"


async def test_a_nameserver_that_cannot_be_reached(ground: Ground) -> None:
    upstream = Upstream(lambda: [(ground.ip, 9)], open_sockets([]), DnsLimits())
    for udp in (True, False):
        with pytest.raises(DnsError) as caught:
            await upstream.ask(read_query(question().to_wire()), udp=udp)
        assert caught.value.code == "dns_unreachable"
        assert f"{ground.ip}:9" in str(caught.value)
