"""What a hostile pod may try: it hurts nobody, costs little, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
import socket

import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.ztun.dns.ground import PORT, Ground
from tests.ztun.dns.nameserver import Nameserver, answering, silent
from ztun.dns.limits import DnsLimits

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

WEB = dns.message.make_query("web", "A", id=1).to_wire()


def framed(wire: bytes) -> bytes:
    return len(wire).to_bytes(2, "big") + wire


async def answered(ground: Ground, *, tcp: bool = True) -> None:
    """The proxy is well. Where connections may be idle for moments only, a busy machine is slower than that."""
    assert (await ground.udp(dns.message.make_query("web", "A"))).answer
    if tcp:
        assert (await ground.tcp(dns.message.make_query("web", "A"))).answer


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the connection ends, however it ends."""
    received = b""
    try:
        while data := await reader.read(65_536):
            received += data
    except ConnectionResetError:
        pass
    return received


class TestDatagrams:
    async def test_garbage(self, ground: Ground) -> None:
        rng = random.Random(8)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((ground.ip, PORT))
            for size in (0, 1, 11, 12, 13, 40, 512, 4096, 4097, 30_000, 65_507):
                sock.send(rng.randbytes(size))
                sock.send(WEB[:4] + rng.randbytes(size)[: max(0, size - 4)])
        await answered(ground)

    async def test_a_flood_of_questions_that_nobody_answers(self) -> None:
        async with Ground(DnsLimits(queries=5)) as ground, Nameserver(ground.addresses, silent) as mute:
            ground.behind(mute)
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect((ground.ip, PORT))
                for number in range(200):
                    sock.send(dns.message.make_query("a.example.org", "A", id=number).to_wire())
                refused = [dns.message.from_wire(await loop.sock_recv(sock, 512)) for _ in range(195)]
            assert {one.rcode() for one in refused} == {dns.rcode.SERVFAIL}
            assert ground.around.in_flight.count == 5
            assert len([sock for sock in ground.made if sock.fileno() >= 0]) == 5
            assert ground.families.overloads.value("pod") == 195
            await answered(ground)

    async def test_a_response_comes_back_as_an_error_once(self, ground: Ground) -> None:
        response = dns.message.make_response(dns.message.from_wire(WEB)).to_wire()
        error = await ground.raw(response)
        assert dns.message.from_wire(error).rcode() == dns.rcode.FORMERR
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((ground.ip, PORT))
            sock.send(error)  # gets no answer: what comes next is that of the query behind it
            sock.send(WEB)
            reply = await asyncio.get_running_loop().sock_recv(sock, 512)
        assert dns.message.from_wire(reply).rcode() == dns.rcode.NOERROR

    async def test_a_client_that_is_gone(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = silent
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(dns.message.make_query("a.example.org", "A").to_wire(), (ground.ip, PORT))
        for asked in [await nameserver.until_asked(n) for n in (1, 2, 3)]:
            asked.send(asked.response())
        nameserver.behave = answering()
        await ground.udp(dns.message.make_query("b.example.org", "A"))
        await answered(ground)

    async def test_many_types_make_few_series(self, ground: Ground, nameserver: Nameserver) -> None:
        for number in range(60_000, 60_050):
            await ground.udp(dns.message.make_query("a.example.org", f"TYPE{number}"))
        samples = ground.families.requests.collect().samples
        assert [sample.labels["request_query_type"] for sample in samples] == ["unknown"]


class TestConnections:
    async def test_half_a_message(self) -> None:
        async with Ground(DnsLimits(idle=0.05)) as ground:
            for piece in (b"", b"\0", framed(WEB)[:-1]):
                reader, writer = await asyncio.open_connection(ground.ip, PORT)
                writer.write(piece)
                assert await ended(reader) == b""
                writer.close()
            await answered(ground, tcp=False)

    async def test_slow_bytes_buy_no_time(self) -> None:
        async with Ground(DnsLimits(idle=0.05)) as ground:
            reader, writer = await asyncio.open_connection(ground.ip, PORT)
            end = asyncio.ensure_future(ended(reader))
            writer.write((4096).to_bytes(2, "big"))
            while not end.done():
                if not writer.is_closing():
                    writer.write(b"x")
                await asyncio.sleep(0)
            assert await end == b""
            writer.close()

    @pytest.mark.parametrize("size", [0, 1, 11, 4097, 65_535])
    async def test_lengths_that_no_query_has(self, ground: Ground, size: int) -> None:
        reader, writer = await asyncio.open_connection(ground.ip, PORT)
        writer.write(size.to_bytes(2, "big") + b"x" * 12)
        assert await ended(reader) == b""
        writer.close()
        await answered(ground)

    async def test_garbage_of_the_right_length(self, ground: Ground) -> None:
        reader, writer = await asyncio.open_connection(ground.ip, PORT)
        writer.write(framed(b"\1\2\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1") + framed(WEB))
        first = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        second = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        assert [dns.message.from_wire(one).rcode() for one in (first, second)] == [
            dns.rcode.FORMERR,
            dns.rcode.NOERROR,
        ]
        writer.close()

    async def test_more_connections_than_a_resolver_needs(self) -> None:
        async with Ground(DnsLimits(connections=3)) as ground:
            held = [await asyncio.open_connection(ground.ip, PORT) for _ in range(3)]
            for reader, writer in held:
                writer.write(framed(WEB))
                await reader.readexactly(2)
            reader, writer = await asyncio.open_connection(ground.ip, PORT)
            assert await ended(reader) == b""
            assert ground.families.overloads.value("connections") == 1
            writer.close()
            for _, one in held:
                one.close()
            assert (await ground.udp(dns.message.make_query("web", "A"))).answer

    async def test_a_client_that_does_not_read_is_not_read(self) -> None:
        """Its queries stay with it: here no more than the buffers of two sockets and eight answers."""
        query = dns.message.make_query("big.example.org", "AAAA")
        answer = dns.message.make_response(query)
        addresses = [f"2001:db8::{number:x}" for number in range(1, 2001)]
        answer.answer.append(dns.rrset.from_text_list(query.question[0].name, 60, "IN", "AAAA", addresses))
        large = answer.to_wire(max_size=65_535)
        async with (
            Ground(DnsLimits(idle=0.2)) as ground,
            Nameserver(ground.addresses, lambda asked: asked.send(large)) as nameserver,
        ):
            ground.behind(nameserver)
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (ground.ip, PORT))
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                while True:  # it is cut off because it does not read, though it has more to ask
                    await loop.sock_sendall(sock, framed(query.to_wire()) * 1000)
            sock.close()
            assert len(nameserver.asked) < 1000
            await answered(ground, tcp=False)

    async def test_it_waits_for_no_more_than_a_few_answers(self) -> None:
        async with Ground() as ground, Nameserver(ground.addresses, silent) as mute:
            ground.behind(mute)
            reader, writer = await asyncio.open_connection(ground.ip, PORT)
            for number in range(100):
                writer.write(framed(dns.message.make_query("a.example.org", "A", id=number).to_wire()))
            await mute.until_asked(8)
            await answered(ground)
            assert len(mute.asked) == 8 == ground.around.in_flight.count
            mute.behave = answering("x. 1 IN A 192.0.2.1")
            for asked in list(mute.asked):
                asked.send(asked.response())
            for _ in range(100):
                await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            writer.close()

    async def test_leaving_in_the_middle(self, ground: Ground, nameserver: Nameserver) -> None:
        nameserver.behave = silent
        _, writer = await asyncio.open_connection(ground.ip, PORT)
        writer.write(framed(dns.message.make_query("a.example.org", "A").to_wire()))
        asked = await nameserver.until_asked()
        writer.transport.abort()
        asked.send(asked.response())
        while ground.around.in_flight.count:
            await asyncio.sleep(0)
        await answered(ground)


@pytest.mark.parametrize("tcp", [False, True])
async def test_an_error_that_nobody_expected_is_answered_too(ground: Ground, tcp: bool) -> None:
    """A connection with a query that is never answered would never be closed."""

    def break_down() -> list[tuple[str, int]]:
        raise RuntimeError("a bug")

    ground.proxy.upstream._nameservers = break_down
    ask = ground.tcp if tcp else ground.udp
    reply = await ask(dns.message.make_query("a.example.org", "A"))
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert ground.around.in_flight.count == 0
