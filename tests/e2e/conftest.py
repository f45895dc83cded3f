"""Containers for a whole run: the image is built once, the nodes are started once, every test leaves them whole."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Read when testcontainers is imported. Its reaper is an image that may not be had; clean-up is done here.
os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"

import docker
import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.image import NoBaseImage, build_image, why_not
from tests.e2e.left_overs import remove_left_overs

LOG_LINES = 60  # of each container, shown when a test has failed


@pytest.fixture(scope="session")
def image() -> str:
    if reason := why_not():
        pytest.skip(reason)
    remove_left_overs()
    client = docker.from_env(timeout=600)
    try:
        return build_image(client)
    except NoBaseImage as error:
        pytest.skip(str(error))
    finally:
        client.close()


@pytest.fixture(scope="session")
def running(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(image, tmp_path_factory.mktemp("cluster"))
    try:
        cluster.ca()
        cluster.node("node-a")
        cluster.node("node-b")
        cluster.until_healthy("ca")
        cluster.node_proxy("node-a")
        cluster.node_proxy("node-b")
        cluster.waypoint()
        cluster.until_healthy("proxy-a", "proxy-b", "waypoint")
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def cluster(running: Cluster, request: pytest.FixtureRequest) -> Cluster:
    request.node.stash[_CLUSTER] = running
    running.until_served("client-a")
    running.until_served("client-b")
    return running


_CLUSTER = pytest.StashKey[Cluster]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows what the containers have written: they are gone when it is read."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    cluster = item.stash.get(_CLUSTER, None)
    if not report.failed or cluster is None:
        return
    for name in list(cluster.containers):
        report.sections.append((f"container {name}", cluster.logs(name, LOG_LINES)))
