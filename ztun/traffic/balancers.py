"""Which endpoint next: round robin, least connections, random.

All work on a list of candidates that the cluster has already narrowed down. Weights are relative; a weight of 0 never
occurs. Endpoints are named by (ip, port).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

EndpointKey: TypeAlias = tuple[str, int]
"""(IP address, port)."""


def choose_random(keys: Sequence[EndpointKey], weights: Sequence[float], rng: random.Random) -> int:
    """The index of one candidate, with a probability in proportion to its weight."""
    if min(weights) == max(weights):
        return rng.randrange(len(keys))
    cumulative = list(accumulate(weights))
    point = rng.random() * cumulative[-1]
    return next((index for index, bound in enumerate(cumulative) if point < bound), len(keys) - 1)


def choose_least_loaded(
    keys: Sequence[EndpointKey],
    weights: Sequence[float],
    active: Mapping[EndpointKey, int],
    rng: random.Random,
) -> int:
    """Power of two choices: of two random candidates the one with fewer connections for its weight.

    Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; Envoy's LEAST_REQUEST with two choices.
    """
    if len(keys) == 1:
        return 0
    first = rng.randrange(len(keys))
    second = rng.randrange(len(keys) - 1)
    second += second >= first
    load = [(active.get(keys[index], 0) + 1) / weights[index] for index in (first, second)]
    return first if load[0] <= load[1] else second


class RoundRobin:
    """Weighted round robin by earliest deadline first, as Envoy does it.

    1. Each endpoint has a deadline; the one with the earliest is next.
    2. Its next deadline is 1/weight later, so twice the weight comes up twice as often.
    3. An endpoint that joins gets a deadline as if it had just been chosen, so it is not flooded.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, EndpointKey]] = []
        self._known: set[EndpointKey] = set()
        self._now = 0.0
        self._count = 0

    def choose(self, keys: Sequence[EndpointKey], weight: Callable[[EndpointKey], float]) -> EndpointKey:
        """The next of the candidates. Those that are left out keep their turn, and save up no more than one."""
        wanted = set(keys)
        for key in keys:
            if key not in self._known:
                self._push(key, self._now + 1 / weight(key))
        waiting: list[tuple[float, int, EndpointKey]] = []
        while True:
            deadline, order, key = heapq.heappop(self._heap)
            if key in wanted:
                break
            waiting.append((deadline, order, key))
        for earlier, place, other in waiting:
            heapq.heappush(self._heap, (max(earlier, deadline), place, other))
        self._now = deadline
        self._push(key, deadline + 1 / weight(key))
        return key

    def retain(self, keys: Sequence[EndpointKey]) -> None:
        """Forget all other endpoints."""
        self._known.intersection_update(keys)
        self._heap = [entry for entry in self._heap if entry[2] in self._known]
        heapq.heapify(self._heap)

    def _push(self, key: EndpointKey, deadline: float) -> None:
        self._known.add(key)
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, key))
