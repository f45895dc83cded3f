"""A compiled answer: all that is left to do for a connection is to draw one of the weighted destinations."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ztun.mesh.model import Service
from ztun.routing import Action, Decision, Destination, Diagnostic, Matched, TraceStep


class Outcome:
    """The same decision for every connection that ends up here, except for the draw.

    ``weights`` are whole numbers in the order of ``destinations``; the decisions are made once and handed out.
    """

    def __init__(
        self,
        action: Action,
        *,
        service: Service | None = None,
        matched: Matched | None = None,
        destinations: Sequence[Destination] = (),
        weights: Sequence[int] = (),
        diagnostics: Sequence[Diagnostic] = (),
    ) -> None:
        self.destinations = tuple(destinations)
        self._cumulative = tuple(accumulate(weights)) or (1,)
        self._total = self._cumulative[-1]
        template = Decision(
            action, service, matched, self.destinations, None, tuple(dict.fromkeys(diagnostics))
        )
        self._decisions = tuple(replace(template, chosen=one) for one in self.destinations) or (template,)

    @property
    def decision(self) -> Decision:
        """The first of the possible decisions: what they all share can be read from it."""
        return self._decisions[0]

    def draw(self, rng: random.Random) -> Decision:
        """One decision, independent of all earlier ones; each destination with exactly its share."""
        if len(self._decisions) == 1:
            return self._decisions[0]
        return self._decisions[bisect_right(self._cumulative, rng.randrange(self._total))]

    def draw_traced(self, rng: random.Random, steps: Sequence[TraceStep]) -> Decision:
        """``draw`` with the reasoning attached; the same state of ``rng`` gives the same destination."""
        decision = self.draw(rng)
        drawn = []
        if len(self._decisions) > 1 and decision.chosen is not None:
            chosen = decision.chosen
            name = f"{chosen.host}:{chosen.port}" + (f" subset {chosen.subset}" if chosen.subset else "")
            drawn.append(TraceStep(1, "draw", f"{name}, share {chosen.share}"))
        return replace(decision, trace=(*steps, *drawn))
