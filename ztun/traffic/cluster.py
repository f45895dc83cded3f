"""The endpoints of one destination under its policy: choice, limits, ejection, warm-up.

Order of a choice: endpoints not tried yet, locality, ejected ones left out, then the balancing algorithm. The
owner reports what became of each connection; nothing here opens one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ztun.mesh.model import Locality, Workload
from ztun.traffic.balancers import EndpointKey, RoundRobin, choose_least_loaded, choose_random
from ztun.traffic.locality import (
    choose_priority,
    label_priority,
    locality_matches,
    priority,
    shares_for,
)
from ztun.traffic.outlier import OutlierDetector
from ztun.traffic.policy import Balancing, TrafficPolicy
from ztun.traffic.ring import HashRing, HashTable, MaglevTable, stable_hash

_HASHED = (Balancing.RING_HASH, Balancing.MAGLEV)
_WARMED = (Balancing.ROUND_ROBIN, Balancing.LEAST_REQUEST)


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint as balancing sees it."""

    key: EndpointKey
    workload: Workload


@dataclass(frozen=True, slots=True)
class Asker:
    """The side of the client that a choice depends on."""

    ip: str = ""
    locality: Locality = field(default_factory=Locality)
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Cluster:
    """State of one destination. ``now`` is seconds of a clock that never goes back."""

    def __init__(self, policy: TrafficPolicy, members: Sequence[Member], now: float) -> None:
        self._policy = policy
        self._members: dict[EndpointKey, Member] = {}
        self._since: dict[EndpointKey, float] = {}
        self._active: Counter[EndpointKey] = Counter()
        self._total = 0
        self._round_robin = RoundRobin()
        self._outliers = OutlierDetector(policy.outlier) if policy.outlier else None
        self._table: HashTable | None = None
        self._table_of: tuple[object, ...] = ()
        self._table_checked = False
        self._started = False
        self.update(policy, members, now)

    @property
    def active(self) -> int:
        """Connections that are open or being made."""
        return self._total

    @property
    def full(self) -> bool:
        """Whether ``maxConnections`` forbids another one: it is closed at once."""
        limit = self._policy.pool.max_connections
        return limit is not None and self._total >= limit

    def update(self, policy: TrafficPolicy, members: Sequence[Member], now: float) -> None:
        """Take a new configuration; what is known of endpoints that stay is kept. Capacity 0 takes no connections."""
        if policy.outlier != self._policy.outlier:
            self._outliers = OutlierDetector(policy.outlier) if policy.outlier else None
        self._policy = policy
        self._members = {member.key: member for member in members if member.workload.capacity > 0}
        # Endpoints that are there from the start are warm: nothing was sent elsewhere meanwhile.
        first = now if self._started else float("-inf")
        self._since = {key: self._since.get(key, first) for key in self._members}
        self._started = True
        self._round_robin.retain(list(self._members))
        if self._outliers is not None:
            self._outliers.retain(self._members)
        self._table_checked = False

    def pick(
        self,
        asker: Asker,
        now: float,
        rng: random.Random,
        *,
        excluded: frozenset[EndpointKey] = frozenset(),
    ) -> Member | None:
        """The endpoint for one connection; ``None`` when there is none left. ``excluded`` were tried already.

        With PASSTHROUGH there is nothing to choose: the owner keeps the dialled address.
        """
        candidates = [member for key, member in self._members.items() if key not in excluded]
        if not candidates:
            return None
        candidates = self._near(candidates, asker, now, rng)
        if not candidates:
            return None
        keys = [member.key for member in candidates]
        return self._members[self._balanced(keys, asker, now, rng)]

    def taken(self, key: EndpointKey) -> None:
        """A connection to the endpoint is being made; it counts until it is ``closed``."""
        self._active[key] += 1
        self._total += 1

    def opened(self, key: EndpointKey) -> None:
        """It was made."""
        if self._outliers is not None:
            self._outliers.succeeded(key)

    def closed(self, key: EndpointKey) -> None:
        """A connection that was taken has ended, or was not made."""
        self._total -= 1
        if self._active[key] <= 1:
            del self._active[key]
        else:
            self._active[key] -= 1

    def failed(self, key: EndpointKey, now: float) -> bool:
        """It could not be made; whether the endpoint is ejected because of that."""
        return self._outliers is not None and self._outliers.failed(key, now)

    def _usable(self, members: Sequence[Member], now: float) -> list[Member]:
        """Those that are not ejected, or all when so few are left that ejecting does more harm (panic)."""
        if self._outliers is None or self._policy.outlier is None:
            return list(members)
        usable = [member for member in members if not self._outliers.is_ejected(member.key, now)]
        if len(usable) * 100 < self._policy.outlier.min_health_percent * len(members):
            return list(members)
        return usable

    def _near(self, members: list[Member], asker: Asker, now: float, rng: random.Random) -> list[Member]:
        """The usable endpoints of the locality or priority that this connection goes to."""
        locality = self._policy.locality
        if locality is not None and locality.enabled and locality.distribute:
            groups = [
                (share, found)
                for pattern, share in shares_for(asker.locality, locality)
                if share > 0
                and (
                    found := self._usable(
                        [one for one in members if locality_matches(pattern, one.workload.locality)], now
                    )
                )
            ]
            if groups:
                chosen = rng.choices(range(len(groups)), [share for share, _ in groups])[0]
                return groups[chosen][1]
        # Istio sets priorities only where endpoints can be found to fail.
        if self._policy.outlier is None or (locality is not None and not locality.enabled):
            return self._usable(members, now)
        levels: dict[int, list[Member]] = {}
        for member in members:
            levels.setdefault(self._level(member, asker), []).append(member)
        ordered = [levels[level] for level in sorted(levels)]
        usable = [self._usable(group, now) for group in ordered]
        if not any(usable):
            return []
        chosen = choose_priority([len(group) for group in usable], [len(group) for group in ordered], rng)
        return usable[chosen]

    def _level(self, member: Member, asker: Asker) -> int:
        locality = self._policy.locality
        if locality is not None and locality.failover_priority:
            return label_priority(asker.labels, member.workload.labels, locality.failover_priority)
        return priority(asker.locality, member.workload.locality, locality)

    def _balanced(self, keys: list[EndpointKey], asker: Asker, now: float, rng: random.Random) -> EndpointKey:
        balancing = self._policy.balancing
        if balancing in _HASHED and self._policy.hash_source_ip and asker.ip:
            wanted = set(keys)
            return next(key for key in self._hashing().order(stable_hash(asker.ip)) if key in wanted)
        if balancing is Balancing.ROUND_ROBIN:
            return self._round_robin.choose(keys, lambda key: self._weight(key, now))
        weights = [self._weight(key, now) for key in keys]
        if balancing is Balancing.LEAST_REQUEST:
            return keys[choose_least_loaded(keys, weights, self._active, rng)]
        return keys[choose_random(keys, weights, rng)]

    def _hashing(self) -> HashTable:
        """Over all endpoints, so that one that is tried or ejected moves nobody else."""
        if self._table is None or not self._table_checked:
            balancing, size = self._policy.balancing, self._policy.table_size
            keys = sorted(self._members)
            weights = [float(self._members[key].workload.capacity) for key in keys]
            table_of = (balancing, size, keys, weights)
            if self._table is None or table_of != self._table_of:
                made = MaglevTable if balancing is Balancing.MAGLEV else HashRing
                self._table, self._table_of = made(keys, weights, size), table_of
            self._table_checked = True
        return self._table

    def _weight(self, key: EndpointKey, now: float) -> float:
        """Capacity, less while warming up: a share that grows with the time since the endpoint joined."""
        weight = float(self._members[key].workload.capacity)
        warmup = self._policy.warmup
        if warmup is None or self._policy.balancing not in _WARMED:
            return weight
        age = now - self._since[key]
        if age >= warmup.duration:
            return weight
        grown = float(max(age / warmup.duration, 0.0) ** (1 / warmup.aggression))
        # Never quite nothing: an endpoint without a first connection would not warm up.
        return weight * max(grown, warmup.minimum_percent / 100, 0.001)
