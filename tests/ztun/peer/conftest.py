"""Both directions of interoperation: an Envoy on one end of the tunnel, ztun on the other."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.peers.addresses import AddressBlock
from tests.peers.envoy import envoy_binary
from tests.peers.link import Ground, Link
from tests.peers.process import raise_descriptor_limit


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what both proxies have logged."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Link):
                for process in (value.node, value.envoy):
                    report.sections.append((f"log of {process.name}", process.log_tail()))
    return report


@pytest.fixture(scope="session", autouse=True)
def envoy_is_here() -> None:
    try:
        envoy_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    raise_descriptor_limit()


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("peer"), AddressBlock(offset=1)) as ground:
        yield ground


@pytest.fixture(scope="module")
def outbound(ground: Ground) -> Iterator[Link]:
    with ground.outbound() as link:
        yield link


@pytest.fixture(scope="module")
def inbound(ground: Ground) -> Iterator[Link]:
    with ground.inbound() as link:
        yield link


@pytest.fixture(scope="module", params=["outbound", "inbound"])
def link(request: pytest.FixtureRequest, ground: Ground) -> Iterator[Link]:
    """Either direction: ``outbound`` has ztun on the client's side, ``inbound`` on the application's."""
    with ground.outbound() if request.param == "outbound" else ground.inbound() as link:
        yield link
