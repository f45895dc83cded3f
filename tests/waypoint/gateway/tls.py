"""What tests of TLS at the gateway share: servers that end it, and a client."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.peers.tls_client import TlsClient, client_context
from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.gateway.edge import Edge, rules, server, to
from tests.ztun.proxy.applications import Wires

PORT = 443
GATEWAY = "ingressgateway-1"


class Client:
    """Makes TLS connections to the gateway."""

    def __init__(self, edge: Edge, wires: Wires, web: WebAuthority, directory: Path) -> None:
        self._edge = edge
        self._wires = wires
        self._web = web
        self._directory = directory

    async def connect(
        self, name: str | None, shown: WebCertificate | None = None, *, port: int = PORT
    ) -> TlsClient:
        """A session that trusts the web CA; raises as :meth:`TlsClient.handshake` does."""
        files: dict[str, Path] = {}
        if shown is not None:
            for part, text in (("certificate", shown.chain), ("key", shown.key)):
                files[part] = self._directory / part
                files[part].write_text(text)
        context = client_context(self._web.pem, **files)
        context.check_hostname = name is not None
        client = TlsClient(await self._wires.dial(self._edge.address(port)), context, name)
        await client.handshake()
        return client

    async def answer(self, name: str | None, shown: WebCertificate | None = None) -> bytes:
        """What the echo server behind the gateway says; empty when the connection ended instead."""
        try:
            client = await self.connect(name, shown)
            await client.send(b"test\n")
            return await client.receive(len(b"hello test\n"))
        except (ssl.SSLError, ConnectionError):
            return b""


def tcp_to(*names: str) -> Mapping[str, Any]:
    return rules("terminated", [GATEWAY], hosts=names or ("*",), tcp=[{"route": [to("echo-server")]}])


def keys(certificate: WebCertificate) -> dict[str, str]:
    return {"tls_crt": certificate.chain, "tls_key": certificate.key}


def terminating(mode: str = "SIMPLE", credential: str = "shop", *hosts: str, **more: Any) -> dict[str, Any]:
    tls = {"mode": mode, **({"credentialName": credential} if credential else {}), **more}
    return server(PORT, "TLS", *(hosts or ("shop.example.com",)), tls=tls)
