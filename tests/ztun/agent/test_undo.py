"""A capture that ends leaves a namespace as it was, whatever was there before, even if it looks like ours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ztun.agent.pods import Pod, PodNetwork
from tests.ztun.netns.namespaces import missing
from ztun.agent.capture import Plan, apply_capture, plan_capture, undo_capture
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.record import CaptureRecord, Owner
from ztun.agent.rules import CaptureOptions
from ztun.agent.traces import look
from ztun.errors import EnrolmentError

pytestmark = pytest.mark.netns

REASON = missing()
OPTIONS = CaptureOptions()
RULE = "fwmark 0x111/0xfff pref 32764 lookup 100"
OTHER_TABLES = """
table inet other {
  chain output { type nat hook output priority -90; policy accept; tcp dport 81 redirect to :82; }
}
table ip ztun {
  chain output { type filter hook output priority 0; policy accept; counter comment "not ours"; }
}
table inet ztun2 {
  chain note { return comment "owner=agent rules=46 routes=46"; }
}
"""


@pytest.fixture
def pod() -> Iterator[Pod]:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network:
        yield network.lonely_pod("pod")


class Held:
    """A pod's namespace, captured step by step as the agent does it."""

    def __init__(self, pod: Pod) -> None:
        self.namespace = PodNamespace.open(pod.path)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.namespace.close()

    def plan(self, earlier: CaptureRecord | None = None, owner: Owner = "agent") -> Plan:
        return asyncio.run(plan_capture(self.namespace, owner=owner, earlier=earlier))

    def apply(self, plan: Plan, options: CaptureOptions = OPTIONS) -> CaptureRecord:
        return asyncio.run(apply_capture(self.namespace, plan, options))

    def undo(self, record: CaptureRecord) -> None:
        asyncio.run(undo_capture(self.namespace, record))

    def refusal(self) -> EnrolmentError:
        with pytest.raises(EnrolmentError) as raised:
            self.plan()
        return raised.value


@pytest.fixture
def held(pod: Pod) -> Iterator[Held]:
    with Held(pod) as held:
        yield held


def script(pod: Pod, text: str) -> None:
    for line in text.strip().splitlines():
        pod.run("sh", "-c", line)


BEFORE = {
    "nothing": "true",
    "our rule": f"ip rule add {RULE}",
    "our rule for IPv6": f"ip -6 rule add {RULE}",
    "our route": "ip route add local 0.0.0.0/0 dev lo table 100",
    "our route for IPv6": "ip -6 route add local ::/0 dev lo table 100",
    "all our routing": f"""
        ip rule add {RULE}; ip route add local 0.0.0.0/0 dev lo table 100
        ip -6 rule add {RULE}; ip -6 route add local ::/0 dev lo table 100""",
    "rules like ours": """
        ip rule add fwmark 0x111/0xffff pref 32764 lookup 100; ip rule add fwmark 0x111/0xfff pref 99 lookup 98""",
    "more in our routing table": """
        ip route add 192.0.2.0/24 dev eth0 table 100; ip -6 route add 2001:db8::/64 dev eth0 table 100""",
    "our setting": "echo 1 > /proc/sys/net/ipv4/tcp_migrate_req",
    "no IPv6": "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_what_was_there_stays(pod: Pod, held: Held, before: str) -> None:
    script(pod, before)
    pod.run("nft", "-f", "-", text=OTHER_TABLES)
    untouched = pod.contents()
    plan = held.plan()
    assert pod.contents() == untouched
    loaded = held.apply(plan)
    captured = pod.contents()
    assert captured.ruleset != untouched.ruleset
    assert RULE.split(" pref")[0] in captured.rules[0]
    assert held.apply(held.plan(loaded)) == loaded
    assert pod.contents() == captured
    held.undo(loaded)
    assert pod.contents() == untouched
    held.undo(loaded)  # again, as an agent does that was killed in between
    assert pod.contents() == untouched


@pytest.mark.parametrize("done", ["nothing", "the routing", "everything"])
def test_a_part_is_undone_as_the_whole(pod: Pod, held: Held, done: str) -> None:
    before = pod.contents()
    plan = held.plan()
    if done != "nothing":
        held.apply(plan)
    if done == "the routing":
        pod.run("nft", "delete", "table", "inet", "ztun")
    held.undo(plan.record)
    assert pod.contents() == before


def test_the_table_itself_says_what_was_done(pod: Pod, held: Held) -> None:
    """An agent that has lost its disk takes it up from there, and undoes what the first one did, not more."""
    pod.run("ip", "rule", "add", *RULE.split())
    before = pod.contents()
    held.apply(held.plan())
    found = held.plan()
    assert (found.record.rules, found.record.routes) == ((6,), (4, 6))
    assert found.record.loaded
    held.undo(held.apply(found, CaptureOptions(dns=False)))
    assert pod.contents() == before


def test_what_somebody_took_away_is_added_again(pod: Pod, held: Held) -> None:
    before = pod.contents()
    first = held.apply(held.plan())
    whole = pod.contents()
    pod.run("nft", "flush", "ruleset")
    pod.run("ip", "rule", "del", *RULE.split())
    pod.run("ip", "-6", "route", "flush", "table", "100")
    again = held.apply(held.plan(first))
    assert pod.contents() == whole
    held.undo(again)
    assert pod.contents() == before


def test_rules_that_somebody_emptied_are_loaded_again(pod: Pod, held: Held) -> None:
    record = held.apply(held.plan())
    whole = pod.contents()
    pod.run("nft", "flush", "chain", "inet", "ztun", "output_nat")
    assert pod.contents() != whole
    held.apply(held.plan(record))
    assert pod.contents() == whole


def test_a_family_that_is_switched_on_later_is_captured_then(pod: Pod, held: Held) -> None:
    def switch(value: str) -> None:
        pod.run("sh", "-c", f"echo {value} > /proc/sys/net/ipv6/conf/lo/disable_ipv6")

    switch("1")
    before = pod.contents()
    first = held.apply(held.plan())
    assert (first.rules, first.routes) == ((4,), (4,))
    switch("0")
    second = held.apply(held.plan(first))
    assert (second.rules, second.routes) == ((4, 6), (4, 6))
    switch("1")  # the kernel drops the route with it, not the rule
    held.undo(second)
    assert pod.contents() == before


@pytest.mark.parametrize(
    ("setup", "code"),
    [
        ("nft add table inet ztun", "foreign_table"),
        ("nft add table inet ztun; nft add chain inet ztun note", "foreign_table"),
        (
            "nft add table inet ztun; nft add chain inet ztun note; nft add rule inet ztun note return comment mine",
            "foreign_table",
        ),
        ("ip route add default dev eth0 table 100", "route_table_taken"),
        ("ip -6 route add default dev eth0 table 100", "route_table_taken"),
        ("ip link set lo down", "loopback_down"),
    ],
)
def test_what_stands_in_the_way_is_named_and_not_touched(pod: Pod, held: Held, setup: str, code: str) -> None:
    script(pod, setup)
    before = pod.contents()
    refusal = held.refusal()
    assert refusal.code == code
    assert pod.name in str(refusal)
    assert refusal.hint
    assert pod.contents() == before


def test_a_table_that_somebody_put_in_the_place_of_ours_stays(pod: Pod, held: Held) -> None:
    record = held.apply(held.plan())
    pod.run("nft", "delete", "table", "inet", "ztun")
    pod.run("nft", "add", "table", "inet", "ztun")
    with pytest.raises(EnrolmentError, match="was not made by this command"):
        held.plan(record)
    held.undo(record)
    contents = pod.contents()
    assert contents.ruleset.split() == ["table", "inet", "ztun", "{", "}"]
    assert "0x111" not in "".join(contents.rules)


def test_two_kinds_of_capture_do_not_mix(held: Held) -> None:
    record = held.apply(held.plan())
    with pytest.raises(EnrolmentError) as raised:
        held.plan(owner="self")
    assert raised.value.code == "captured_otherwise"
    held.undo(record)
    own = held.apply(held.plan(owner="self"))
    assert held.refusal().code == "captured_otherwise"
    assert "--self" in held.refusal().hint
    held.undo(own)


def test_a_look_changes_nothing_and_sees_everything(pod: Pod, held: Held) -> None:
    before = pod.contents()
    found = asyncio.run(look(held.namespace))
    assert pod.contents() == before
    assert (found.table, found.note, found.loopback) == (False, None, True)
    assert found.known == found.usable == (4, 6)
    record = held.apply(held.plan())
    found = asyncio.run(look(held.namespace))
    assert found.note is not None
    assert replace(found.note, loaded=record.loaded) == record
    assert (found.rules, found.routes, found.taken) == ({4, 6}, {4, 6}, set())


def test_a_command_that_is_missing_is_named(
    held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = held.refusal()
    assert error.code in ("command_missing", "command_failed")
    assert "nftables" in error.hint
