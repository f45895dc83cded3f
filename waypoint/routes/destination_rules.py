"""Which DestinationRules apply to a host for a client.

Levels are looked at one after the other, and the first one with any hit is the only one used: a wildcard rule in the
client's namespace hides an exact rule in the service's. Within a level the most specific host wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from waypoint.routes.model import DestinationRule, EffectiveRule, Subset
from waypoint.routes.names import exported_to, host_subset_of, specificity

NO_RULE = EffectiveRule((), MappingProxyType({}), None)


class DestinationRules:
    """All DestinationRules of a snapshot, by namespace and host."""

    def __init__(self, rules: Iterable[DestinationRule], root_namespace: str) -> None:
        self._root = root_namespace
        self._exact: dict[tuple[str, str], list[DestinationRule]] = {}
        self._wildcards: dict[str, list[DestinationRule]] = {}
        for rule in sorted(rules, key=lambda rule: rule.age):
            if rule.host.startswith("*"):
                self._wildcards.setdefault(rule.namespace, []).append(rule)
            else:
                self._exact.setdefault((rule.namespace, rule.host), []).append(rule)

    def for_client(
        self, host: str, service_namespace: str, client_namespace: str, client_labels: Mapping[str, str]
    ) -> EffectiveRule:
        """Sidecars and gateways: the client's namespace, the service's, the root namespace."""
        levels = dict.fromkeys((client_namespace, service_namespace, self._root))
        for namespace in levels:
            rules = self._at(namespace, host, client_namespace)
            if namespace == client_namespace:
                selected = [
                    rule for rule in rules if rule.selector and _selects(rule.selector, client_labels)
                ]
                rules = selected or [rule for rule in rules if not rule.selector]
            else:
                rules = [rule for rule in rules if not rule.selector]
            if rules:
                return merge(_most_specific(rules))
        return NO_RULE

    def for_waypoint(self, host: str, service_namespace: str, waypoint_namespace: str) -> EffectiveRule:
        """Waypoints: the waypoint's namespace, the service's, the root namespace; selectors are ignored."""
        for namespace in dict.fromkeys((waypoint_namespace, service_namespace, self._root)):
            rules = [rule for rule in self._at(namespace, host, waypoint_namespace) if not rule.selector]
            if rules:
                return merge(_most_specific(rules))
        return NO_RULE

    def elsewhere(self, host: str, subset: str) -> DestinationRule | None:
        """Some DestinationRule for the host that has the subset, whatever its level: for explanations."""
        groups = [*self._exact.values(), *self._wildcards.values()]
        for rule in (rule for group in groups for rule in group):
            if host_subset_of(host, rule.host) and any(entry.name == subset for entry in rule.subsets):
                return rule
        return None

    def _at(self, namespace: str, host: str, client_namespace: str) -> list[DestinationRule]:
        exact = self._exact.get((namespace, host), ())
        wild = (rule for rule in self._wildcards.get(namespace, ()) if host_subset_of(host, rule.host))
        return [
            rule for rule in (*exact, *wild) if exported_to(rule.export_to, rule.namespace, client_namespace)
        ]


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def _most_specific(rules: list[DestinationRule]) -> list[DestinationRule]:
    best = max(rules, key=lambda rule: specificity(rule.host)).host
    return [rule for rule in rules if rule.host == best]


def merge(rules: list[DestinationRule]) -> EffectiveRule:
    """Oldest first: it is the base; later ones add subsets with new names, and a policy if there is none yet.

    Rules with another exportTo than the base are not merged into it.
    """
    base = rules[0]
    merged = [rule for rule in rules if set(rule.export_to or ("*",)) == set(base.export_to or ("*",))]
    subsets: dict[str, Subset] = {}
    for rule in merged:
        for subset in rule.subsets:
            subsets.setdefault(subset.name, subset)
    traffic = next((rule.traffic for rule in merged if rule.traffic is not None), None)
    return EffectiveRule(tuple(merged), MappingProxyType(subsets), traffic)
