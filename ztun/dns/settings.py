"""What the DNS proxy is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ztun.mesh.address import AddressError, parse_host_port

RESOLV_CONF = Path("/etc/resolv.conf")
DNS_PROXY_PORT = 15053  # ztunnel's; the redirect rules lead there
LOCALHOST = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Where it listens in each pod, and whom it asks.

    ``preferred_namespace`` decides between services of one name that nothing else ranks.
    """

    ips: tuple[str, ...] = LOCALHOST
    port: int = DNS_PROXY_PORT
    resolv_conf: Path = RESOLV_CONF
    preferred_namespace: str = ""


def parse_dns_address(text: str) -> tuple[tuple[str, ...], int]:
    """The addresses and the port of ``localhost:15053`` or ``IP:PORT``; raises ``ValueError``."""
    address = parse_host_port(text)
    if address.is_ip:
        return (address.host,), address.port
    if address.host != "localhost":
        raise AddressError("expected localhost:PORT or IP:PORT")
    return LOCALHOST, address.port
