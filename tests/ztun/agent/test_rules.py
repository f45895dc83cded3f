"""The redirect rules as text: the golden program of istio-cni, line by line, and what each option changes."""

from __future__ import annotations

import re

import pytest

from ztun.agent.record import digest
from ztun.agent.rules import CaptureOptions, load_program, route_command, rule_command, unload_program
from ztun.errors import ConfigError

pytestmark = pytest.mark.unit

GOLDEN = {
    "output_raw": [
        "type filter hook output priority raw; policy accept;",
        "udp dport 53 meta mark & 0xfff == 0x539 ct zone set 1",
    ],
    "prerouting_raw": [
        "type filter hook prerouting priority raw; policy accept;",
        "udp sport 53 meta mark & 0xfff != 0x539 ct zone set 1",
    ],
    "prerouting_mangle": [
        "type filter hook prerouting priority mangle; policy accept;",
        "meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111",
    ],
    "output_mangle": [
        "type route hook output priority mangle; policy accept;",
        "ct mark & 0xfff == 0x111 meta mark set ct mark",
    ],
    "prerouting_nat": [
        "type nat hook prerouting priority dstnat; policy accept;",
        "ip saddr 169.254.7.127 meta l4proto tcp accept",
        "ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff meta l4proto tcp accept",
        "ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006",
        "ip6 daddr != ::1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006",
    ],
    "output_nat": [
        "type nat hook output priority -100; policy accept;",
        "ip daddr 169.254.7.127 meta l4proto tcp accept",
        "ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff meta l4proto tcp accept",
        'oifname != "lo" udp dport 53 meta mark & 0xfff != 0x539 redirect to :15053',
        "ip daddr != 127.0.0.1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053",
        "ip6 daddr != ::1 tcp dport 53 meta mark & 0xfff != 0x539 redirect to :15053",
        "meta mark & 0xfff == 0x111 meta l4proto tcp accept",
        'ip daddr != 127.0.0.1 oifname "lo" accept',
        'ip6 daddr != ::1 oifname "lo" accept',
        "ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001",
        "ip6 daddr != ::1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001",
    ],
    "note": ['return comment ""'],
}


def chains(program: str) -> dict[str, list[str]]:
    found = re.findall(r"  chain (\w+) \{\n(.*?)\n  \}", program, re.S)
    return {name: [line.strip() for line in body.splitlines()] for name, body in found}


def test_everything_is_captured_as_istio_does() -> None:
    assert chains(load_program(CaptureOptions())) == GOLDEN


def test_the_table_is_replaced_as_a_whole() -> None:
    """``flush`` of a table that is not there would fail, so it is made first; all in one transaction."""
    lines = load_program(CaptureOptions()).splitlines()
    assert lines[:3] == ["table inet ztun {}", "flush table inet ztun", "table inet ztun {"]
    assert unload_program() == "delete table inet ztun\n"


def test_without_dns_nothing_mentions_port_53() -> None:
    program = load_program(CaptureOptions(dns=False))
    assert "53 " not in program.replace("15053", "53 ")
    assert "zone" not in program
    rest = {name: rules[:1] if name.endswith("raw") else rules for name, rules in GOLDEN.items()}
    rest["output_nat"] = [rule for rule in GOLDEN["output_nat"] if "port 53" not in rule]
    assert chains(program) == rest


def test_every_option_has_the_same_chains() -> None:
    """A table whose chains stay is exchanged without a moment at which it is empty."""
    heads = {
        tuple((name, rules[0]) for name, rules in chains(load_program(options)).items())
        for options in (
            CaptureOptions(),
            CaptureOptions(dns=False, inbound=False, virtual_interfaces=("tap0",)),
        )
    }
    assert len(heads) == 1


def test_the_note_is_a_rule_that_no_packet_reaches() -> None:
    found = chains(load_program(CaptureOptions(), "owner=agent rules=4 routes="))
    assert found == GOLDEN | {"note": ['return comment "owner=agent rules=4 routes="']}


def test_without_inbound_capture_only_outbound_is_redirected() -> None:
    found = chains(load_program(CaptureOptions(inbound=False)))
    assert found == GOLDEN | {"prerouting_nat": GOLDEN["prerouting_nat"][:1]}


def test_what_arrives_from_a_virtual_interface_is_outbound() -> None:
    found = chains(load_program(CaptureOptions(virtual_interfaces=("tap0", "br-vm.1"))))
    assert found["prerouting_nat"][1:5] == [
        'iifname "tap0" meta l4proto tcp redirect to :15001',
        'iifname "tap0" return',
        'iifname "br-vm.1" meta l4proto tcp redirect to :15001',
        'iifname "br-vm.1" return',
    ]
    assert found["prerouting_nat"][5:] == GOLDEN["prerouting_nat"][1:]


@pytest.mark.parametrize("name", ["", "a b", 'x"; drop', "sixteen-letters-", "-x", "a\n", "a/b", "*"])
def test_an_interface_is_a_name_and_nothing_else(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        CaptureOptions(virtual_interfaces=(name,))
    assert raised.value.code == "bad_interface"


def test_the_user_of_a_proxy_inside_is_let_out_before_anything_is_redirected() -> None:
    found = chains(load_program(CaptureOptions(proxy_uid=1337)))
    without = [rule for rule in found["output_nat"] if rule != "meta skuid 1337 accept"]
    assert found | {"output_nat": without} == GOLDEN
    at = found["output_nat"].index("meta skuid 1337 accept")
    assert not any("redirect" in rule for rule in found["output_nat"][:at])


def test_policy_routing_is_istios() -> None:
    assert rule_command("add") == "rule add fwmark 0x111/0xfff pref 32764 lookup 100\n"
    assert rule_command("del") == "rule del fwmark 0x111/0xfff pref 32764 lookup 100\n"
    assert route_command("add", 4) == "route add local 0.0.0.0/0 dev lo table 100\n"
    assert route_command("del", 6) == "route del local ::/0 dev lo table 100\n"


def test_every_option_makes_other_rules() -> None:
    options = [
        CaptureOptions(),
        CaptureOptions(dns=False),
        CaptureOptions(inbound=False),
        CaptureOptions(virtual_interfaces=("tap0",)),
        CaptureOptions(proxy_uid=1337),
    ]
    assert len({digest(one) for one in options}) == len(options)
