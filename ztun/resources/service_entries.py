"""ServiceEntries to services of the mesh and their endpoints."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from types import MappingProxyType

from certs.spiffe import SpiffeError, SpiffeId
from ztun.mesh.address import is_hostname
from ztun.mesh.document import Document, Problem
from ztun.mesh.model import BalanceMode, LoadBalancing, Service, ServicePort, Vip, canonical_ip
from ztun.resources.auto_allocation import may_allocate
from ztun.resources.drafts import DraftIndex, WorkloadDraft
from ztun.resources.entries import ServiceEntry, ServiceEntrySpec
from ztun.resources.schema import Metadata
from ztun.resources.services import declared_protocol, exported
from ztun.resources.workloads import Surroundings, entry_draft, outside_workload


def entry_services(
    document: Document, model: ServiceEntry, around: Surroundings
) -> tuple[list[Service], list[Problem]]:
    """One service per host of a ServiceEntry."""
    spec, metadata = model.spec, model.metadata
    problems: list[Problem] = []
    vips: list[Vip] = []
    for index, address in enumerate(spec.addresses):
        try:
            vips.append(_vip(address, around.settings.network))
        except ValueError:
            path = ("spec", "addresses", index)
            problems.append(document.problem(path, f"{address!r} is not an IP address or network"))
    sans: list[SpiffeId] = []
    for index, name in enumerate(spec.subject_alt_names):
        try:
            sans.append(SpiffeId.parse(name))
        except SpiffeError as error:
            path = ("spec", "subjectAltNames", index)
            hint = "only SPIFFE identities are accepted from peers"
            problems.append(document.problem(path, str(error), hint=hint, severity="warning"))
    passthrough = LoadBalancing(BalanceMode.PASSTHROUGH)
    export_to = exported(document, spec.export_to)
    services: list[Service] = []
    for index, host in enumerate(spec.hosts):
        if not is_hostname(host.removeprefix("*.")):
            hint = "a DNS name, or *. and a DNS name"
            problems.append(document.problem(("spec", "hosts", index), f"{host!r} is not a host", hint=hint))
            continue
        services.append(
            Service(
                name=document.name,
                namespace=document.namespace,
                hostname=host.lower(),
                vips=tuple(vips),
                ports=MappingProxyType(
                    {
                        port.number: ServicePort(
                            port.number,
                            port.target_port or port.number,
                            port.name,
                            port.protocol.upper() or declared_protocol(port.name),
                        )
                        for port in spec.ports
                        if port.protocol.upper() != "UDP"
                    }
                ),
                subject_alt_names=tuple(sans),
                waypoint=around.waypoints.of(document, metadata, "service"),
                weighted_waypoints=around.waypoints.shares(document, metadata),
                load_balancing=passthrough if spec.resolution == "NONE" else LoadBalancing(),
                visible_only_in_namespace=export_to == (document.namespace,),
                export_to=export_to,
                created=document.created,
            )
        )
    return services, problems


def recorded_addresses(model: ServiceEntry, service: Service) -> tuple[str, ...] | None:
    """What istiod allocated for a host of a ServiceEntry; None when the host may not have an allocated address.

    That is so when it has addresses of its own or opts out, and for hosts that a single address cannot stand for:
    wildcards, and those whose connections go on to the address that the client dialled.
    """
    spec = model.spec
    if spec.addresses or not may_allocate(model.metadata):
        return None
    if service.hostname.startswith("*") or spec.resolution == "NONE":
        return None
    recorded: dict[str, None] = {}
    for one in model.status.addresses or []:
        if (one.host or "").lower() == service.hostname:
            with contextlib.suppress(ValueError):  # a status nobody can read says nothing about the object
                recorded[canonical_ip(one.value or "")] = None
    return tuple(recorded)


def _vip(address: str, network: str) -> Vip:
    if "/" not in address:
        return Vip(network, canonical_ip(address))
    cidr = ipaddress.ip_network(address, strict=False)
    if cidr.prefixlen == cidr.max_prefixlen:
        return Vip(network, canonical_ip(str(cidr.network_address)))
    return Vip(network, str(cidr.network_address), cidr)


def attach_entry(
    document: Document,
    model: ServiceEntry,
    services: Iterable[Service],
    drafts: DraftIndex,
    around: Surroundings,
) -> None:
    """Give the services of a ServiceEntry its endpoints: listed ones, selected ones, or the host itself."""
    spec = model.spec
    services = list(services)
    if spec.workload_selector is not None:
        for draft in drafts.select(document.namespace, spec.workload_selector.labels):
            _join(draft, services, spec)
        return
    prefix = (
        f"{around.settings.cluster_id}/networking.istio.io/ServiceEntry/{document.namespace}/{document.name}"
    )
    for endpoint in spec.endpoints:
        uid = f"{prefix}/{endpoint.address}"
        draft = entry_draft(document, endpoint, Metadata(), uid, around)
        # An address of a pod stands for the pod, which may have a tunnel.
        owner = next((at for ip in draft.base.addresses if (at := drafts.at(draft.base.network, ip))), None)
        if owner is not None:
            draft = WorkloadDraft(owner.base, endpoint.ports, owner.services, owner.policies)
        else:
            drafts.add(draft)
        _join(draft, services, spec)
    if spec.resolution in ("DNS", "DNS_ROUND_ROBIN") and not spec.endpoints:
        for service in services:
            if not service.hostname.startswith("*"):
                draft = WorkloadDraft(
                    outside_workload(
                        document, f"{prefix}/{service.hostname}", around, hostname=service.hostname
                    )
                )
                drafts.add(draft)
                _join(draft, [service], spec)


def _join(draft: WorkloadDraft, services: Iterable[Service], spec: ServiceEntrySpec) -> None:
    targets = {
        port.number: draft.named_ports.get(port.name) or port.target_port or port.number
        for port in spec.ports
    }
    for service in services:
        draft.services[service.key] = dict(targets)
