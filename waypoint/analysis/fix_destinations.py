"""Fixes to destinations: hosts that are nearly right, and subsets that nobody defined."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from waypoint.analysis.configuration import Configuration
from waypoint.analysis.fix_virtual_service import at
from waypoint.analysis.suggestion import nearest
from waypoint.routes.names import expand_host
from ztun.mesh.document import Document
from ztun.mesh.model import Service
from ztun.routing import Diagnostic

VERSION_LABEL = "version"
"""The label that subsets are made of by convention."""


def rule_host(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """IST0174: a DestinationRule for a host that does not exist gets the one it was meant for.

    That is the host whose routes use its subsets, if there is one; otherwise the closest name.
    """
    document, spec = finding.document, data.get("spec")
    if document is None or not isinstance(spec, dict) or not isinstance(spec.get("host"), str):
        return ""
    domain = configuration.snapshot.cluster_domain
    host = expand_host(spec["host"], document.namespace, domain)
    hostnames = configuration.index.registry.hostnames()
    names = {
        entry["name"] for entry in spec.get("subsets") or [] if isinstance(entry, dict) and "name" in entry
    }
    users = [used for used, subset in _used_subsets(configuration) if subset in names and used in hostnames]
    meant = nearest(host, dict.fromkeys(users)) or nearest(host, hostnames)
    if not meant:
        return ""
    before, spec["host"] = spec["host"], meant
    return f"host {before} changed to {meant}"


def _used_subsets(configuration: Configuration) -> Iterator[tuple[str, str]]:
    """(host, subset) of every destination, those of ``http`` included: they may become ``tcp``."""
    domain = configuration.snapshot.cluster_domain
    for document in configuration.documents:
        if document.kind != "VirtualService":
            continue
        spec = document.data.get("spec")
        for section in ("tcp", "tls", "http"):
            for rule in _items(spec, section):
                for route in _items(rule, "route"):
                    destination = route.get("destination") if isinstance(route, dict) else None
                    if isinstance(destination, dict) and isinstance(destination.get("host"), str):
                        host = expand_host(destination["host"], document.namespace, domain)
                        yield host, str(destination.get("subset", ""))


def _items(data: Any, key: str) -> list[Any]:
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, list) else []


def reference(configuration: Configuration, finding: Diagnostic, data: dict[str, Any]) -> str:
    """IST0101: a destination host that is nearly right. Other references are left to people."""
    if finding.path[-2:] != ("destination", "host") or finding.document is None:
        return ""
    destination = at(data, finding.path[:-1])
    if not isinstance(destination, dict) or not isinstance(destination.get("host"), str):
        return ""
    domain = configuration.snapshot.cluster_domain
    host = expand_host(destination["host"], finding.document.namespace, domain)
    if configuration.snapshot.services_with_hostname(host):
        return ""  # it exists, but is not exported
    meant = nearest(host, configuration.index.registry.hostnames())
    if not meant:
        return ""
    before, destination["host"] = destination["host"], meant
    return f"destination {before} changed to {meant}"


def missing_subsets(configuration: Configuration) -> Iterator[tuple[Document, dict[str, Any], str]]:
    """DestinationRules with the subsets that routes use and pods have under the label ``version``.

    Yields the document (a new one where a host has no DestinationRule), its new data and what was done.
    """
    wanted: dict[str, dict[str, None]] = {}
    for host, subset in _used_subsets(configuration):
        if subset:
            wanted.setdefault(host, {})[subset] = None
    for host, subsets in wanted.items():
        services = configuration.snapshot.services_with_hostname(host)
        rules = [rule for rule in configuration.index.destination_rule_list if rule.host == host]
        known = {subset.name for rule in rules for subset in rule.subsets}
        versions = {
            labels.get(VERSION_LABEL)
            for service in services
            for labels in configuration.population.endpoints(service)
        }
        missing = [subset for subset in subsets if subset not in known and subset in versions]
        if not missing:
            continue
        document = rules[0].document if rules else _new_rule(services[0])
        data = copy.deepcopy(document.data)
        defined = data["spec"].get("subsets") or []
        data["spec"]["subsets"] = [
            *defined,
            *({"name": one, "labels": {VERSION_LABEL: one}} for one in missing),
        ]
        yield document, data, f"DST-NOSUBSET: subset {', '.join(missing)} added"


def _new_rule(service: Service) -> Document:
    version = "networking.istio.io/v1"
    data = {
        "apiVersion": version,
        "kind": "DestinationRule",
        "metadata": {"name": service.name, "namespace": service.namespace},
        "spec": {"host": service.hostname},
    }
    return Document(version, "DestinationRule", service.namespace, service.name, data)


FIXES: Mapping[str, Callable[[Configuration, Diagnostic, dict[str, Any]], str]] = MappingProxyType(
    {"IST0174": rule_host, "IST0101": reference}
)
