"""The examples on live traffic through a waypoint: a node proxy, the waypoint, another node proxy, echo servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.waypoint.server.ground import Ground, ask

pytestmark = pytest.mark.net


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("page")) as ground:
        ground.start()
        yield ground


@pytest.mark.asyncio
async def test_without_rules_the_dialled_service_answers(ground: Ground) -> None:
    assert await ask(ground.entries["telnet-client", "echo-server-2"]) == "hello-2 test"
