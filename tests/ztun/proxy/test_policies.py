"""AuthorizationPolicy on live traffic: when a connection comes, while it is set up, and while it stands."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import ip_network

import pytest

from tests.ztun.proxy.applications import Application, Wire, Wires
from tests.ztun.proxy.backlog import FullBacklog
from tests.ztun.proxy.journal import code
from tests.ztun.proxy.mesh import APP_PORT, Pair, until
from ztun.mesh.model import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
    Workload,
)
from ztun.proxy import connections

pytestmark = pytest.mark.net

OTHER_PORT = 9001


def principal(workload: Workload) -> Match:
    return Match(principals=(StringMatch(StringMatchKind.EXACT, workload.identity.path),))


def policy(
    name: str,
    action: PolicyAction,
    *matches: Match,
    scope: PolicyScope = PolicyScope.NAMESPACE,
    dry_run: bool = False,
) -> Authorization:
    """A policy with one rule: any of the matches."""
    return Authorization(name, "default", scope, action, ((matches,),), dry_run)


async def dial(pair: Pair, wires: Wires, source: Workload | None = None, port: int = APP_PORT) -> Wire:
    """A connection through the mesh, as ``source`` or as the client."""
    return await wires.dial(await pair.enter(source or pair.client, pair.server_ip, port))


async def dial_through(pair: Pair, wires: Wires, application: Application) -> tuple[Wire, Wire]:
    client = await dial(pair, wires)
    server = await application.accept()
    await client.send(b"x")
    assert await server.receive(1) == b"x"
    return client, server


@pytest.mark.asyncio
async def test_not_allowed(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    pair.policies["only-server"] = policy("only-server", PolicyAction.ALLOW, principal(pair.server))
    await pair.start()
    client = await dial(pair, wires)
    client.writer.write(b"secret")
    assert await client.ending() == "reset"
    near, far = await pair.near.journal.end(), await pair.far.journal.end()
    assert near.error is not None
    assert far.error is not None
    assert (near.error.code, near.error.flag) == ("http_status_401", "CONNECT")
    assert str(near.error) == "http status: 401 Unauthorized"
    assert (far.error.code, far.error.flag) == ("policy_rejection", "DENY")
    assert str(far.error) == (
        "connection closed due to policy rejection: allow policies exist, but none allowed"
    )
    assert pair.far.sample("istio_tcp_connections_failed_total", response_flags="DENY") == 1
    assert application.accepted == 0


@pytest.mark.asyncio
async def test_explicitly_denied(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    pair.policies["all"] = policy("all", PolicyAction.ALLOW, Match(destination_ports=(APP_PORT,)))
    pair.policies["not-you"] = policy("not-you", PolicyAction.DENY, principal(pair.client))
    await pair.start()
    client = await dial(pair, wires)
    assert await client.ending() == "reset"
    far = await pair.far.journal.end()
    assert str(far.error) == (
        "connection closed due to policy rejection: explicitly denied by: default/not-you"
    )
    assert application.accepted == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "attribute", ["principal", "namespace", "source address", "destination port", "service account"]
)
async def test_allowed_by(pair: Pair, wires: Wires, attribute: str) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    match = {
        "principal": principal(pair.client),
        "namespace": Match(namespaces=(StringMatch(StringMatchKind.PREFIX, "def"),)),
        "source address": Match(source_ips=(ip_network(pair.client.addresses[0]),)),
        "destination port": Match(destination_ports=(APP_PORT,)),
        "service account": Match(service_accounts=(("default", "client"),)),
    }[attribute]
    pair.policies["some"] = policy("some", PolicyAction.ALLOW, match)
    await pair.start()
    await dial_through(pair, wires, application)
    # the same policy lets nobody else in, or nowhere else
    pair.policies["some"] = replace(
        pair.policies["some"], rules=(((replace(match, destination_ports=(OTHER_PORT,)),),),)
    )
    await pair.apply()
    client = await dial(pair, wires)
    assert await client.ending() == "reset"
    assert application.accepted == 1


@pytest.mark.asyncio
async def test_dry_run_is_reported_and_changes_nothing(
    pair: Pair, wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    application = await wires.application(pair.server_ip, APP_PORT)
    pair.policies["try"] = policy("try", PolicyAction.DENY, principal(pair.client), dry_run=True)
    await pair.start()
    await dial_through(pair, wires, application)
    (line,) = [line for line in caplog.messages if "dry-run" in line]
    assert "policy=default/try" in line


@pytest.mark.asyncio
async def test_established_connection_is_closed_when_it_is_denied(pair: Pair, wires: Wires) -> None:
    friend = pair.pod("friend", "near")
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await dial_through(pair, wires, application)
    stays = await dial(pair, wires, friend)
    stays_server = await application.accept()

    pair.policies["not-you"] = policy("not-you", PolicyAction.DENY, principal(pair.client))
    await pair.apply()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    far = await pair.far.journal.end()
    assert far.error is not None
    assert (far.error.code, far.error.flag) == ("policy_late_rejection", "DENY")
    assert str(far.error).startswith("connection closed due to policy change: explicitly denied by: ")
    assert (far.bytes_recv, far.bytes_sent) == (1, 0)
    assert code(await pair.near.journal.end()) == "stream_reset"

    await stays.send(b"still here")
    assert await stays_server.receive(10) == b"still here"
    assert (len(pair.far.journal.ends), len(pair.near.journal.ends)) == (1, 1)


@pytest.mark.asyncio
async def test_all_that_is_denied_is_closed_however_many_slices_that_takes(
    pair: Pair, wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "JUDGE_SLICE", 2)
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    opened = [(await dial_through(pair, wires, application))[0] for _ in range(7)]

    pair.policies["not-you"] = policy("not-you", PolicyAction.DENY, principal(pair.client))
    await pair.apply()
    assert [await client.ending() for client in opened] == ["reset"] * len(opened)
    ends = [await pair.far.journal.end() for _ in opened]
    assert {end.error.code for end in ends if end.error is not None} == {"policy_late_rejection"}


@pytest.mark.asyncio
async def test_a_state_that_is_replaced_at_once_leaves_nobody_unjudged(
    pair: Pair, wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "JUDGE_SLICE", 2)
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    opened = [(await dial_through(pair, wires, application))[0] for _ in range(7)]

    pair.policies["not-you"] = policy("not-you", PolicyAction.DENY, principal(pair.client))
    denying = pair.far.plane
    denying.replace_snapshot(pair.snapshot())
    denying.replace_snapshot(pair.snapshot())
    assert [await client.ending() for client in opened] == ["reset"] * len(opened)


@pytest.mark.asyncio
async def test_established_connection_is_closed_when_it_is_no_longer_allowed(
    pair: Pair, wires: Wires
) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    pair.policies["some"] = policy("some", PolicyAction.ALLOW, principal(pair.client))
    await pair.start()
    client, _ = await dial_through(pair, wires, application)
    pair.policies["some"] = policy("some", PolicyAction.ALLOW, principal(pair.server))
    await pair.apply()
    assert await client.ending() == "reset"
    assert code(await pair.far.journal.end()) == "policy_late_rejection"


@pytest.mark.asyncio
async def test_policy_that_comes_to_select_the_workload_counts_for_what_stands(
    pair: Pair, wires: Wires
) -> None:
    """A label of the pod has changed; nothing about the policy has. ztunnel keeps such a connection."""
    application = await wires.application(pair.server_ip, APP_PORT)
    pair.policies["no"] = policy(
        "no", PolicyAction.DENY, principal(pair.client), scope=PolicyScope.WORKLOAD_SELECTOR
    )
    await pair.start()
    client, _ = await dial_through(pair, wires, application)
    pair.workloads["server"] = replace(pair.server, authorization_policies=("default/no",))
    await pair.apply()
    assert await client.ending() == "reset"
    assert code(await pair.far.journal.end()) == "policy_late_rejection"


@pytest.mark.asyncio
async def test_reload_that_denies_nobody_closes_nothing(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await dial_through(pair, wires, application)
    pair.policies["others"] = policy("others", PolicyAction.DENY, principal(pair.server))
    pair.policies["try"] = policy("try", PolicyAction.DENY, principal(pair.client), dry_run=True)
    for _ in range(3):
        await pair.apply()
    await client.send(b"y")
    assert await server.receive(1) == b"y"


@pytest.mark.asyncio
async def test_connection_that_is_being_set_up_is_judged_by_the_new_policy(pair: Pair, wires: Wires) -> None:
    """The old policy let it pass, and while the application was dialled a new one came."""
    async with FullBacklog(pair.server_ip, APP_PORT) as slow:
        await pair.start()
        client = await dial(pair, wires)
        client.writer.write(b"secret")
        await pair.far.journal.until(pair.far.journal.opens, 1)
        pair.policies["not-you"] = policy("not-you", PolicyAction.DENY, principal(pair.client))
        await pair.apply()
        connection = await slow.relent()
        connection.setblocking(False)
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(connection, 100)
        connection.close()
        assert await client.ending() == "reset"
    assert code(await pair.far.journal.end()) == "policy_rejection"
    assert code(await pair.near.journal.end()) == "http_status_401"


@pytest.mark.asyncio
async def test_connections_of_a_removed_pod_are_closed(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await dial_through(pair, wires, application)
    del pair.workloads["server"]
    await pair.apply()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    assert code(await pair.far.journal.end()) == "workload_gone"
    await until(lambda: pair.far.sample("istio_tcp_sockets_open", reporter="destination") == 0)


@pytest.mark.asyncio
async def test_connections_of_a_removed_client_are_closed(pair: Pair, wires: Wires) -> None:
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    client, server = await dial_through(pair, wires, application)
    del pair.workloads["client"]
    await pair.apply()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    assert code(await pair.near.journal.end()) == "workload_gone"


@pytest.mark.asyncio
async def test_plaintext_has_no_identity(pair: Pair, wires: Wires) -> None:
    """STRICT arrives here as a policy that denies whoever has none."""
    application = await wires.application(pair.server_ip, APP_PORT)
    await pair.start()
    entry = await pair.plaintext(pair.far, pair.server_ip, APP_PORT)
    stranger = pair.addresses.take()
    client = await wires.dial(entry, source=stranger)
    server = await application.accept()
    assert server.peer[0] == stranger
    await client.send(b"hello world")
    assert await server.receive(11) == b"hello world"

    anybody = StringMatch(StringMatchKind.PRESENCE)
    pair.policies["strict"] = policy("strict", PolicyAction.DENY, Match(not_principals=(anybody,)))
    await pair.apply()
    assert await client.ending() == "reset"
    assert await server.ending() == "reset"
    late = await pair.far.journal.end()
    assert code(late) == "policy_late_rejection"
    assert (late.source_identity, late.hbone_addr) == (None, "")
    again = await wires.dial(entry, source=stranger)
    assert await again.ending() == "reset"
    assert code(await pair.far.journal.end(2)) == "policy_rejection"
    labels = {"connection_security_policy": "unknown", "response_flags": "DENY"}
    assert pair.far.sample("istio_tcp_connections_failed_total", **labels) == 2
    assert application.accepted == 1

    # members of the mesh are not concerned
    member = await dial(pair, wires)
    await application.accept()
    await member.send(b"x")


@pytest.mark.asyncio
async def test_dry_run_is_reported_for_plaintext_too(
    pair: Pair, wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    """Who tries STRICT out wants to know whom it would shut out."""
    caplog.set_level(logging.INFO)
    application = await wires.application(pair.server_ip, APP_PORT)
    anybody = StringMatch(StringMatchKind.PRESENCE)
    pair.policies["strict"] = policy(
        "strict", PolicyAction.DENY, Match(not_principals=(anybody,)), dry_run=True
    )
    await pair.start()
    await wires.dial(await pair.plaintext(pair.far, pair.server_ip, APP_PORT))
    stranger = (await application.accept()).peer
    (line,) = [line for line in caplog.messages if "dry-run" in line]
    assert "policy=default/strict" in line
    assert f"peer={stranger[0]}:" in line


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [15001, 15006, 15008, 15080])
async def test_plaintext_to_a_port_of_the_proxy_is_refused(pair: Pair, wires: Wires, port: int) -> None:
    await pair.start()
    client = await wires.dial(await pair.plaintext(pair.far, pair.server_ip, port))
    assert await client.ending() == "reset"
    assert code(await pair.far.journal.refusal()) == "self_call"
