"""The redirect rules of a captured network namespace, as text; pure.

They do what istio-cni's iptables program does in a pod (same marks, ports and order), as one nftables table for
IPv4 and IPv6. What the proxy sends carries :data:`PACKET_MARK` and is never captured again; connections that it
makes in a client's name carry :data:`CONNECTION_MARK`, by which their answers are routed back to it. Traffic to
localhost, and what the pod sends to its own addresses, stays away from the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ztun.errors import ConfigError

TABLE = "ztun"
NOTE_CHAIN = "note"
PACKET_MARK = 0x539
CONNECTION_MARK = 0x111
MARK_MASK = 0xFFF
RULE_PREFERENCE = 32764
ROUTE_TABLE = 100
DNS_ZONE = 1  # conntrack zone of the proxy's own queries, which may have the same ports as the pod's
OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT = 15001, 15006, 15008, 15053
PROBE_ADDRESS_V4 = "169.254.7.127"  # istio-cni's host rules give kubelet's probes this source
PROBE_ADDRESS_V6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"

Family: TypeAlias = Literal[4, 6]

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", re.ASCII)  # IFNAMSIZ is 16 with the final 0
_OURS = f"meta mark & {MARK_MASK:#x} == {PACKET_MARK:#x}"
_NOT_OURS = f"meta mark & {MARK_MASK:#x} != {PACKET_MARK:#x}"


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What is captured, beside outbound TCP."""

    dns: bool = True
    """Queries to port 53, by UDP and TCP, go to the proxy."""
    inbound: bool = True
    """Plaintext connections that arrive go to the proxy (``ambient.istio.io/bypass-inbound-capture`` says no)."""
    virtual_interfaces: tuple[str, ...] = ()
    """Interfaces behind which others live, VMs for instance: what arrives there is outbound traffic."""
    proxy_uid: int | None = None
    """User that is never captured (``istio-iptables --proxy-uid``): a proxy inside asks its CA without the mark."""

    def __post_init__(self) -> None:
        for name in self.virtual_interfaces:
            if not _INTERFACE.fullmatch(name):
                raise ConfigError(
                    "bad_interface",
                    f"{name!r} is not the name of a network interface",
                    hint="letters, digits, '-', '_' and '.', at most 15",
                )


def load_program(options: CaptureOptions, note: str = "") -> str:
    """Give the input of ``nft -f -`` that makes the table, or replaces all its rules, in one transaction.

    The chains stay and only their rules are exchanged: every packet meets either the old ones or the new ones, but
    a new table beside the old one would be empty for some. ``note`` (at most 128 bytes, no quotes) is kept in a
    chain of its own that no packet reaches: it says whose the table is, and what else belongs to it.
    """
    chains = "".join(
        f"  chain {name} {{\n    type {hook}; policy accept;\n"
        + "".join(f"    {rule}\n" for rule in rules)
        + "  }\n"
        for name, hook, rules in _chains(options)
    )
    chains += f'  chain {NOTE_CHAIN} {{\n    return comment "{note}"\n  }}\n'
    return f"table inet {TABLE} {{}}\nflush table inet {TABLE}\ntable inet {TABLE} {{\n{chains}}}\n"


def unload_program() -> str:
    """Give the input of ``nft -f -`` that removes the table."""
    return f"delete table inet {TABLE}\n"


def _chains(options: CaptureOptions) -> Iterator[tuple[str, str, list[str]]]:
    query, answer = (
        [f"{way} {whose} ct zone set {DNS_ZONE}"] if options.dns else []
        for way, whose in (("udp dport 53", _OURS), ("udp sport 53", _NOT_OURS))
    )
    yield "output_raw", "filter hook output priority raw", query
    yield "prerouting_raw", "filter hook prerouting priority raw", answer
    keep = 0xFFFFFFFF ^ MARK_MASK
    spoofed = f"ct mark set ct mark & {keep:#x} | {CONNECTION_MARK:#x}"
    yield "prerouting_mangle", "filter hook prerouting priority mangle", [f"{_OURS} {spoofed}"]
    returning = f"ct mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} meta mark set ct mark"
    yield "output_mangle", "route hook output priority mangle", [returning]
    yield "prerouting_nat", "nat hook prerouting priority dstnat", list(_arriving(options))
    yield "output_nat", "nat hook output priority -100", list(_leaving(options))


def _arriving(options: CaptureOptions) -> Iterator[str]:
    for interface in options.virtual_interfaces:
        yield f'iifname "{interface}" meta l4proto tcp redirect to :{OUTBOUND_PORT}'
        yield f'iifname "{interface}" return'
    if options.inbound:
        yield f"ip saddr {PROBE_ADDRESS_V4} meta l4proto tcp accept"
        yield f"ip6 saddr {PROBE_ADDRESS_V6} meta l4proto tcp accept"
        for elsewhere in ("ip daddr != 127.0.0.1", "ip6 daddr != ::1"):
            yield f"{elsewhere} tcp dport != {HBONE_PORT} {_NOT_OURS} redirect to :{INBOUND_PORT}"


def _leaving(options: CaptureOptions) -> Iterator[str]:
    """The order matters: DNS goes to the proxy even where other traffic is let through."""
    elsewhere = ("ip daddr != 127.0.0.1", "ip6 daddr != ::1")
    yield f"ip daddr {PROBE_ADDRESS_V4} meta l4proto tcp accept"
    yield f"ip6 daddr {PROBE_ADDRESS_V6} meta l4proto tcp accept"
    if options.proxy_uid is not None:
        yield f"meta skuid {options.proxy_uid} accept"
    if options.dns:
        yield f'oifname != "lo" udp dport 53 {_NOT_OURS} redirect to :{DNS_PORT}'
        for away in elsewhere:
            yield f"{away} tcp dport 53 {_NOT_OURS} redirect to :{DNS_PORT}"
    yield f"meta mark & {MARK_MASK:#x} == {CONNECTION_MARK:#x} meta l4proto tcp accept"
    for away in elsewhere:
        yield f'{away} oifname "lo" accept'
    for away in elsewhere:
        yield f"{away} meta l4proto tcp {_NOT_OURS} redirect to :{OUTBOUND_PORT}"


def rule_command(verb: Literal["add", "del"]) -> str:
    """Give the line of ``ip [-6] -batch -`` that sends answers with the connection mark to the extra table."""
    mark = f"{CONNECTION_MARK:#x}/{MARK_MASK:#x}"
    return f"rule {verb} fwmark {mark} pref {RULE_PREFERENCE} lookup {ROUTE_TABLE}\n"


def route_command(verb: Literal["add", "del"], family: Family) -> str:
    """Give the line of ``ip [-6] -batch -`` for the extra table: every address is local there."""
    everything = "0.0.0.0/0" if family == 4 else "::/0"
    return f"route {verb} local {everything} dev lo table {ROUTE_TABLE}\n"
