"""A proxy that is being replaced: the new one gets what comes, the old one finishes what it has begun."""

from __future__ import annotations

import asyncio
import socket

import dns.message
import dns.rcode
import pytest

from tests.ztun.dns.ground import PORT, Ground
from tests.ztun.dns.nameserver import Nameserver, silent

pytestmark = [pytest.mark.net, pytest.mark.asyncio]


def shared(ip: str, kind: int) -> socket.socket:
    """A socket whose address an old and a new proxy have at the same time."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((ip, PORT))
    return sock


async def listen(ground: Ground, ip: str) -> None:
    await ground.proxy.open([shared(ip, socket.SOCK_DGRAM)], [shared(ip, socket.SOCK_STREAM)])


async def test_the_new_proxy_gets_all_queries_and_the_old_one_answers_its_own() -> None:
    async with Ground() as old, Ground(own=old.addresses) as new:
        ip = old.addresses.take()
        async with Nameserver(old.addresses, silent) as nameserver:
            old.behind(nameserver)
            await listen(old, ip)
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as begun:
                begun.setblocking(False)
                begun.connect((ip, PORT))
                begun.send(dns.message.make_query("slow.example.org", "A", id=7).to_wire())
                asked = await nameserver.until_asked()
                await listen(new, ip)
                # what the kernel has given to the old one already is not lost
                queued = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
                for sock in queued:
                    sock.setblocking(False)
                    sock.connect((ip, PORT))
                    sock.send(dns.message.make_query("web", "A").to_wire())
                old.proxy.finish()
                for sock in queued:
                    assert dns.message.from_wire(await loop.sock_recv(sock, 512)).answer
                    sock.close()
                before = new.count("requests", "a")
                for _ in range(50):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        sock.setblocking(False)
                        sock.connect((ip, PORT))
                        sock.send(dns.message.make_query("web", "A").to_wire())
                        assert dns.message.from_wire(await loop.sock_recv(sock, 512)).answer
                assert new.count("requests", "a") == before + 50
                asked.send(asked.response(rcode=dns.rcode.NXDOMAIN))
                reply = dns.message.from_wire(await loop.sock_recv(begun, 512))
                assert (reply.id, reply.rcode()) == (7, dns.rcode.NXDOMAIN)
            for _ in range(10):
                reader, writer = await asyncio.open_connection(ip, PORT)
                wire = dns.message.make_query("web", "A").to_wire()
                writer.write(len(wire).to_bytes(2, "big") + wire)
                size = int.from_bytes(await reader.readexactly(2), "big")
                assert dns.message.from_wire(await reader.readexactly(size)).answer
                writer.close()
            assert new.count("requests", "a", "tcp", "client", "v1") == 10


async def test_one_that_has_finished_can_be_closed(ground: Ground) -> None:
    ground.proxy.finish()
    ground.proxy.finish()
    ground.proxy.close()
    await ground.proxy.closed()


async def test_sockets_that_cannot_be_served_are_closed(ground: Ground) -> None:
    """Two that are bound without listening to one address cannot listen both."""
    ip = ground.addresses.take()
    pair = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(2)]
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, PORT))
    udp = shared(ip, socket.SOCK_DGRAM)
    with pytest.raises(OSError, match="in use"):
        await ground.proxy.open([udp], pair)
    assert [sock.fileno() for sock in (udp, *pair)] == [-1] * 3
