"""No session ticket leaves a server, whichever of our modules was imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

AFTER_THE_HANDSHAKE = """
import {first}
import os
assert os.environ.get("OPENSSL_CONF") == {operator!r}, "the setting of the environment is what it was"
from OpenSSL import SSL
from tests.certs.handshake import MESH, NOW, Trusting, certificate
from certs.authority import create_authority
from certs.bundle import TrustBundle
from certs.context import TlsContexts, open_session
authority = create_authority(now=NOW)
contexts = TlsContexts(Trusting(TrustBundle(1, authority.roots)))
client = open_session(contexts.client(certificate(authority)), "client", MESH)
server = open_session(contexts.server(certificate(authority)), "server", MESH)

def step(here, there):
    try:
        here.do_handshake()
    except SSL.WantReadError:
        pass
    try:
        there.bio_write(sent := here.bio_read(1 << 17))
    except SSL.WantReadError:
        return 0
    return len(sent)

step(client, server), step(server, client), step(client, server)
left = step(server, client)  # the client's Finished was read: what comes now are tickets or nothing
assert server.get_peer_finished() is not None
print(left)
"""


def bytes_after_the_handshake(first: str, operator: str | None = None) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "OPENSSL_CONF"}
    if operator is not None:
        environment["OPENSSL_CONF"] = operator
    done = subprocess.run(
        [sys.executable, "-c", AFTER_THE_HANDSHAKE.format(first=first, operator=operator)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


FIRST = ["certs.server", "ztun.cli", "ztun.net.tls", "waypoint.gateway.admitted"]


@pytest.mark.parametrize("first", FIRST)
def test_server_sends_nothing_of_its_own_after_the_handshake(first: str) -> None:
    assert bytes_after_the_handshake(first) == 0


def test_configuration_of_the_operator_is_left_alone() -> None:
    """It may be what a regulated environment prescribes. Tickets are sent then; test_context shows them useless."""
    assert bytes_after_the_handshake("certs.spiffe", os.devnull) > 0
