"""Pods, and an agent that is started anew for each test; nothing of either is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ztun.agent.pods import PodNetwork
from tests.ztun.agent.processes import AgentProcess
from tests.ztun.netns.namespaces import missing

REASON = missing()


@pytest.fixture
def network() -> Iterator[PodNetwork]:
    if REASON:
        pytest.skip(REASON)
    with PodNetwork() as network:
        yield network


class Agents:
    """Agents one after the other on the same state, as a machine has them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack

    def start(self, *options: str | Path, environment: dict[str, str] | None = None) -> AgentProcess:
        """One more; the one before must have ended."""
        agent = AgentProcess(self.directory, *options, environment=environment)
        self._stack.enter_context(agent)
        return agent


@pytest.fixture
def agents(network: PodNetwork, tmp_path: Path) -> Iterator[Agents]:
    with ExitStack() as stack:
        yield Agents(tmp_path, stack)


@pytest.fixture
def agent(agents: Agents) -> AgentProcess:
    return agents.start()
