"""Diagnostics about ``destinationSubnets``: they are compared with the address that the client dialled."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from waypoint.routes.findings import about, block_path
from waypoint.routes.model import L4Rule, VirtualService
from ztun.mesh.model import IpNetwork, Service
from ztun.routing import Diagnostic


def subnet_findings(owner: VirtualService, rule: L4Rule, service: Service) -> Iterator[Diagnostic]:
    """HOSTBITS, SUBNET-NEVER and SUBNET-OUTSIDE-SERVICE for one rule and one service it applies to."""
    networks = [vip.cidr for vip in service.vips if vip.cidr is not None]
    addresses = [vip.ip for vip in service.vips]
    for block in rule.blocks:
        path = (*block_path(rule, block), "destinationSubnets")
        for subnet in block.subnets:
            if subnet.host_bits:
                message = f"{subnet.text} has host bits; it means {subnet.network}"
                yield about(owner, "HOSTBITS", "info", path, message, f"write {subnet.network}")
            if networks:
                if not any(covers(network, subnet.network) for network in networks):
                    message = f"{subnet.network} reaches outside the addresses of {service.hostname}"
                    yield about(owner, "SUBNET-OUTSIDE-SERVICE", "info", path, message)
            elif not service.headless and not any(contains(subnet.network, ip) for ip in addresses):
                known = ", ".join(addresses) or "none"
                message = (
                    f"{subnet.network} contains no address of {service.hostname} ({known}); clients dial the "
                    "service's address, not an endpoint's"
                )
                hint = "match the address that clients dial"
                yield about(owner, "SUBNET-NEVER", "warning", path, message, hint)


def covers(outer: IpNetwork, inner: IpNetwork) -> bool:
    """Whether every address of ``inner`` is in ``outer``; families never mix."""
    if isinstance(outer, ipaddress.IPv4Network) and isinstance(inner, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(outer, ipaddress.IPv6Network) and isinstance(inner, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def contains(network: IpNetwork, ip: str) -> bool:
    """Whether an address (canonical text) is in the network; families never mix."""
    return ipaddress.ip_address(ip) in network


def duplicate(owner: VirtualService, rule: L4Rule, network: IpNetwork, keeper: str) -> Diagnostic:
    """DUP-CIDR."""
    message = f"{network} is already taken by {keeper}, which keeps it"
    path = ("spec", rule.section, rule.index, "match")
    return about(owner, "DUP-CIDR", "warning", path, message, "remove one of the two")


def order_findings(
    entries: Sequence[tuple[VirtualService, L4Rule, IpNetwork]],
) -> Iterator[Diagnostic]:
    """SUBNET-ORDER: a later rule whose longer prefix overrides an earlier one. ``entries`` are in rule order."""
    for at, (owner, rule, network) in enumerate(entries):
        for earlier_owner, earlier_rule, wider in entries[:at]:
            same = earlier_rule is rule and earlier_owner is owner
            if not same and network != wider and covers(wider, network):
                message = (
                    f"{network} wins over {wider} of {earlier_owner.key} "
                    f"{earlier_rule.section}[{earlier_rule.index}]: the longest prefix counts, not the order"
                )
                yield about(
                    owner, "SUBNET-ORDER", "info", ("spec", rule.section, rule.index, "match"), message
                )
                break
