"""TLS that ends at the gateway: how each server does it, and what is asked of its clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from OpenSSL import SSL

from certs.peer import CertificateFacts, PeerExpectation, PeerIdentity, judge_leaf, read_facts
from certs.spiffe import SpiffeId
from waypoint.gateway.admitted import AdmittedClients, admitted_clients
from waypoint.gateway.credentials import MUTUAL_MODES, Credentials, Material
from waypoint.gateway.server_context import (
    accepting,
    limit,
    read_certificates,
    read_key,
    read_revocations,
    server_context,
    verify_clients,
)
from waypoint.routes.listeners import BoundServer, TlsTreatment
from waypoint.routes.model import ServerTls
from ztun.errors import CertificateRevoked, ConfigError, TunnelTlsError
from ztun.routing import Diagnostic

if TYPE_CHECKING:
    from waypoint.routes.gateway_table import OpenListener
    from ztun.mesh.model import Workload
    from ztun.mesh.snapshot import Snapshot
    from ztun.proxy.plane import Plane

ServerKey: TypeAlias = tuple[str, int]
"""(key of the Gateway object, index of the server)."""
_Signature: TypeAlias = tuple[tuple[str, int, int], ...]

MESH_MODE = "ISTIO_MUTUAL"


class Terminator(Protocol):
    """How one server terminates TLS."""

    async def session(self) -> SSL.Connection:
        """A new session in accept state. Raises :class:`ZtunError`."""

    def client(self, session: SSL.Connection) -> PeerIdentity | None:
        """Judge the client after the handshake; who it is, if it is of the mesh. Raises :class:`TunnelTlsError`."""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A server with a certificate of its own (SIMPLE, MUTUAL, OPTIONAL_MUTUAL), and the clients it admits."""

    context: SSL.Context
    admitted: AdmittedClients

    async def session(self) -> SSL.Connection:
        """See ``Terminator``."""
        return accepting(self.context)

    def client(self, session: SSL.Connection) -> PeerIdentity | None:
        """See ``Terminator``. The chain was verified in the handshake."""
        if self.admitted.restricted:
            certificate = session.get_peer_certificate(as_cryptography=True)
            if certificate is not None and not self.admitted.admits(certificate):
                raise TunnelTlsError(
                    "client_not_listed",
                    "the client's certificate is none of those that the server admits",
                    hint="see subjectAltNames, verifyCertificateSpki and verifyCertificateHash of the server",
                )
        return None


class MeshCertificate:
    """A server with the gateway's own certificate of the mesh, for clients of the mesh (ISTIO_MUTUAL)."""

    def __init__(self, plane: Plane, identity: SpiffeId) -> None:
        self._plane = plane
        self._identity = identity
        self._context: tuple[tuple[int, int], SSL.Context] | None = None

    async def session(self) -> SSL.Connection:
        """See ``Terminator``; a renewed certificate and changed roots count from the next session on."""
        certificate = await self._plane.certificate(self._identity)
        bundle = self._plane.store.bundle
        generations = (certificate.generation, bundle.generation)
        if self._context is None or self._context[0] != generations:
            context = server_context(certificate.chain, certificate.key)
            verify_clients(context, bundle.roots, (), required=True)
            self._context = generations, context
        return accepting(self._context[1])

    def client(self, session: SSL.Connection) -> PeerIdentity | None:
        """See ``Terminator``: one SPIFFE identity of the own trust domain, and not revoked."""
        path = session.get_verified_chain(as_cryptography=True) or []
        facts = [read_facts(certificate) for certificate in path]
        links = [one.link for one in facts[:-1] if isinstance(one, CertificateFacts)]
        if not links or len(links) != len(facts) - 1 or not isinstance(facts[0], CertificateFacts):
            raise TunnelTlsError("peer_chain", "the client's certificate cannot be read")
        if self._plane.store.bundle.is_revoked(links):
            raise CertificateRevoked("peer_revoked", "the client's certificate was revoked")
        judged = judge_leaf(facts[0], PeerExpectation(None, self._plane.settings.trust_domain))
        if not isinstance(judged, SpiffeId):
            raise TunnelTlsError(judged.code, judged.message.replace("peer", "client"), hint=judged.hint)
        return PeerIdentity(judged, tuple(links), facts[0].not_after)


class Terminations:
    """The terminators of one gateway, made anew only where something they are made of has changed."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._made: dict[tuple[ServerTls, Material], OwnCertificate] = {}
        self._mesh: dict[SpiffeId, MeshCertificate] = {}
        self._signature: _Signature = ()
        self._files: frozenset[Path] = frozenset()

    def fit(
        self, snapshot: Snapshot, workload: Workload, listeners: Iterable[OpenListener]
    ) -> tuple[Mapping[ServerKey, Terminator], list[Diagnostic]]:
        """The terminators of all servers that need one, and what is wrong with those that cannot have one."""
        credentials = Credentials(snapshot, workload.namespace)
        found: dict[ServerKey, Terminator] = {}
        wrong: list[Diagnostic] = []
        made: dict[tuple[ServerTls, Material], OwnCertificate] = {}
        for bound in (server for opened in listeners for server in opened.listener.servers):
            tls = bound.server.tls
            if tls is None or bound.treatment is not TlsTreatment.TERMINATE or bound.http:
                continue
            key = server_key(bound)
            if tls.mode == MESH_MODE:
                identity = workload.identity
                self._mesh = {identity: self._mesh.get(identity) or MeshCertificate(self._plane, identity)}
                found[key] = self._mesh[identity]
                continue
            try:
                parts = (tls, credentials.find(bound))
                made[parts] = made.get(parts) or self._made.get(parts) or _own_certificate(*parts)
            except ConfigError as error:
                wrong.append(_unusable(bound, error))
            else:
                found[key] = made[parts]
        self._made = made
        self._files = frozenset(credentials.files)
        self._signature = self._look()
        return found, wrong

    def files_changed(self) -> bool:
        """Whether a certificate file is not what it was when it was read."""
        return bool(self._files) and self._look() != self._signature

    def _look(self) -> _Signature:
        found = []
        for path in sorted(self._files):
            try:
                status = path.stat()
            except OSError:
                found.append((str(path), -1, 0))
            else:
                found.append((str(path), status.st_size, status.st_mtime_ns))
        return tuple(found)


def server_key(bound: BoundServer) -> ServerKey:
    """What a server is known by."""
    return bound.config.key, bound.server.index


def _own_certificate(tls: ServerTls, material: Material) -> OwnCertificate:
    chain = read_certificates(material.chain, "the certificate")
    context = server_context(chain, read_key(material.key))
    limit(context, tls.min_version, tls.max_version, tls.cipher_suites)
    if tls.mode in MUTUAL_MODES:
        authorities = read_certificates(material.authorities, "the CA of the clients")
        revocations = read_revocations(material.revocations)
        verify_clients(context, authorities, revocations, required=tls.mode == "MUTUAL")
    elif tls.mode != "SIMPLE":
        raise ConfigError("tls_mode", f"tls mode {tls.mode} is not supported", hint="SIMPLE or MUTUAL")
    return OwnCertificate(
        context, admitted_clients(tls.subject_alt_names, tls.client_keys, tls.client_hashes)
    )


def _unusable(bound: BoundServer, error: ConfigError) -> Diagnostic:
    hosts = ", ".join(host for _, host in bound.hosts)
    message = f"TLS on port {bound.server.port} for {hosts} is refused: {error}"
    path = ("spec", "servers", bound.server.index, "tls")
    config = bound.config
    return Diagnostic("GW-TLS-CREDENTIAL", "error", config.label, path, message, error.hint, config.document)
