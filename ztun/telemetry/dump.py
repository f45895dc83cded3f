"""The mesh as JSON values, with the names and shapes that ztunnel dumps and ``istioctl ztunnel-config``
reads.

Lists are sorted, so that two dumps of the same state are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from ztun.mesh.model import (
    AppTunnelProtocol,
    Authorization,
    BalanceMode,
    GatewayAddress,
    IpFamilies,
    IpNetwork,
    Match,
    NamespacedName,
    NetworkAddress,
    Service,
    StringMatch,
    StringMatchKind,
    Vip,
    Workload,
)
from ztun.mesh.snapshot import Snapshot

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

_BALANCE_MODES = {
    BalanceMode.UNSPECIFIED: "Standard",
    BalanceMode.STRICT: "Strict",
    BalanceMode.FAILOVER: "Failover",
    BalanceMode.PASSTHROUGH: "Passthrough",
}
_IP_FAMILIES = {
    IpFamilies.AUTOMATIC: "",
    IpFamilies.IPV4_ONLY: "IPv4",
    IpFamilies.IPV6_ONLY: "IPv6",
    IpFamilies.DUAL: "Dual",
}


def mesh_dump(snapshot: Snapshot) -> dict[str, Json]:
    """``workloads``, ``services`` and ``policies`` of a snapshot."""
    workloads = sorted(snapshot.workloads.values(), key=lambda one: (one.namespace, one.name, one.uid))
    services = sorted(snapshot.services.values(), key=lambda one: (one.namespace, one.name, one.hostname))
    members: dict[NamespacedName, list[Workload]] = {}
    for workload in workloads:
        for key in workload.services:
            members.setdefault(key, []).append(workload)
    return {
        "workloads": [workload_dump(workload) for workload in workloads],
        "services": [service_dump(service, members.get(service.key, ())) for service in services],
        "policies": [policy_dump(policy) for _, policy in sorted(snapshot.policies.items())],
    }


def workload_dump(workload: Workload) -> dict[str, Json]:
    """One workload; optional parts are left out when they have no value."""
    tunnel = workload.application_tunnel
    shape: dict[str, Json] = {
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "workloadIps": list(workload.addresses),
        "protocol": workload.tunnel_protocol.value,
        "trustDomain": workload.trust_domain,
        "serviceAccount": workload.service_account,
        "network": workload.network,
        "hostname": workload.hostname,
        "networkMode": "HostNetwork" if workload.host_network else "Standard",
        "node": workload.node,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type.value,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "clusterId": workload.cluster_id,
        "locality": {
            name: value
            for name, value in (
                ("region", workload.locality.region),
                ("zone", workload.locality.zone),
                ("subzone", workload.locality.subzone),
            )
            if value
        },
        "nativeTunnel": workload.native_tunnel,
        "status": workload.health.value,
        "capacity": workload.capacity,
        "authorizationPolicies": sorted(workload.authorization_policies),
        "services": {_slash(key): _ports(ports) for key, ports in sorted(workload.services.items())},
    }
    if workload.waypoint is not None:
        shape["waypoint"] = _gateway(workload.waypoint)
    if workload.network_gateway is not None:
        shape["networkGateway"] = _gateway(workload.network_gateway)
    if tunnel is not None and tunnel.protocol is not AppTunnelProtocol.NONE:
        port: dict[str, Json] = {"port": tunnel.port} if tunnel.port else {}
        shape["applicationTunnel"] = {"protocol": tunnel.protocol.value} | port
    return shape


def service_dump(service: Service, members: Sequence[Workload]) -> dict[str, Json]:
    """One service with its endpoints; those that are not ready are in it with their status."""
    shape: dict[str, Json] = {
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": [f"{vip.network}/{vip.ip}" for vip in service.vips if vip.cidr is None],
        "cidrVips": [_cidr_vip(vip) for vip in service.vips if vip.cidr is not None],
        "ports": _ports({port.number: port.target_port for port in service.ports.values()}),
        "endpoints": {
            one.uid: {
                "workloadUid": one.uid,
                "service": _slash(service.key),
                "port": _ports(one.services[service.key]),
                "status": one.health.value,
            }
            for one in members
        },
        "subjectAltNames": [str(name) for name in sorted(service.subject_alt_names)],
        "ipFamilies": _IP_FAMILIES[service.ip_families],
        "canonical": service.canonical,
        "visibility": "Namespace" if service.visible_only_in_namespace else "Public",
    }
    if service.waypoint is not None:
        shape["waypoint"] = _gateway(service.waypoint)
    if service.weighted_waypoints:
        shape["weightedWaypoints"] = [
            {**_gateway(share.gateway), "weight": share.weight} for share in service.weighted_waypoints
        ]
    balancing = service.load_balancing
    if balancing.mode is not BalanceMode.UNSPECIFIED or balancing.preference or balancing.allow_unhealthy:
        shape["loadBalancer"] = {
            "mode": _BALANCE_MODES[balancing.mode],
            "routingPreferences": [scope.value.capitalize() for scope in balancing.preference],
            "healthPolicy": "AllowAll" if balancing.allow_unhealthy else "OnlyHealthy",
        }
    return shape


def policy_dump(policy: Authorization) -> dict[str, Json]:
    """One policy; ``rules`` is an OR of ANDs of ORs of matches."""
    return {
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": policy.scope.value,
        "action": policy.action.value,
        "dryRun": policy.dry_run,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules],
        "targetRefs": [
            {"group": group, "kind": kind, "name": name} for group, kind, name in policy.target_refs
        ],
    }


def _match(match: Match) -> Json:
    shape: dict[str, Json] = {
        "namespaces": _strings(match.namespaces),
        "notNamespaces": _strings(match.not_namespaces),
        "serviceAccounts": _accounts(match.service_accounts),
        "notServiceAccounts": _accounts(match.not_service_accounts),
        "principals": _strings(match.principals),
        "notPrincipals": _strings(match.not_principals),
        "sourceIps": _networks(match.source_ips),
        "notSourceIps": _networks(match.not_source_ips),
        "destinationIps": _networks(match.destination_ips),
        "notDestinationIps": _networks(match.not_destination_ips),
        "destinationPorts": list(match.destination_ports),
        "notDestinationPorts": list(match.not_destination_ports),
    }
    return {key: values for key, values in shape.items() if values}


def _strings(matches: Sequence[StringMatch]) -> Json:
    return [
        {"Presence": {}} if one.kind is StringMatchKind.PRESENCE else {one.kind.value: one.value}
        for one in matches
    ]


def _accounts(accounts: Sequence[NamespacedName]) -> Json:
    return [{"namespace": namespace, "serviceAccount": name} for namespace, name in accounts]


def _networks(networks: Sequence[IpNetwork]) -> Json:
    return [str(network) for network in networks]


def _gateway(gateway: GatewayAddress) -> dict[str, Json]:
    where = gateway.destination
    name = f"{where.network}/{where.ip}" if isinstance(where, NetworkAddress) else _slash(where)
    return {"destination": name, "hboneMtlsPort": gateway.hbone_mtls_port}


def _cidr_vip(vip: Vip) -> str:
    return f"{vip.network}/{vip.cidr}"


def _ports(ports: Mapping[int, int]) -> Json:
    return {str(port): target for port, target in sorted(ports.items())}


def _slash(key: NamespacedName) -> str:
    return f"{key[0]}/{key[1]}"
