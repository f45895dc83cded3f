"""The objects by the thousand are what they claim to be: valid, so many, and no concern of the measured server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from tests.bench.documents import CLIENT, Document, as_text, server_policy, server_service
from tests.bench.growth import crowd
from tests.bench.growth.reload import ALL, ONE, Texts
from tests.peers.node import Pod
from ztun.mesh.document import Problem
from ztun.mesh.snapshot import Snapshot
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit

SERVER_POD = Pod("server", "127.0.0.9", "node")


def snapshot(documents: Iterable[Document]) -> Snapshot:
    found, problems = parse_documents(as_text(list(documents)), file="mesh.yaml")
    assert problems == []
    return translate(found, settings=MeshSettings()).snapshot


def errors(problems: Iterable[Problem]) -> list[Problem]:
    return [problem for problem in problems if problem.severity == "error"]


def test_a_mesh_has_as_many_objects_as_it_says_and_all_are_valid() -> None:
    made = snapshot(crowd.mesh(250))
    assert (len(made.workloads), len(made.services), len(made.policies)) == (250, 25, 25)
    assert errors(made.problems) == []
    assert all(len(made.endpoints(key)) == crowd.WORKLOADS_PER_SERVICE for key in made.services)


@pytest.mark.parametrize("kind", crowd.KINDS)
def test_every_kind_is_valid_and_every_object_is_one_of_its_own(kind: str) -> None:
    documents = list(crowd.KINDS[kind](120))
    made = snapshot(documents)
    assert errors(made.problems) == []
    names = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in documents}
    assert len(names) == 120


def test_addresses_are_unique_at_the_largest_size() -> None:
    pods = Counter(pod["status"]["podIP"] for pod in crowd.workloads(10_000))
    services = Counter(service["spec"]["clusterIP"] for service in crowd.services(10_000))
    assert max(pods.values()) == max(services.values()) == 1
    assert not pods.keys() & services.keys()


def test_no_policy_of_the_crowd_applies_to_the_measured_server() -> None:
    measured = [SERVER_POD.document(), server_service(waypoint=False), server_policy(CLIENT)]
    made = snapshot([*measured, *crowd.policies(200)])
    server = made.workload_named("default", "server")
    assert server is not None
    assert [policy.name for policy in made.policies_for(server)] == ["server-clients"]


def chunks(text: str) -> list[str]:
    return text.split("---\n")


def test_texts_of_a_reload_differ_in_one_object_or_in_all() -> None:
    texts = Texts(50)
    first, one = chunks(texts.next(ONE, 0)), chunks(texts.next(ONE, 0))
    assert sum(before != after for before, after in zip(first, one, strict=True)) == 1
    everything = chunks(texts.next(ALL, 0))
    changed = sum(before != after for before, after in zip(one, everything, strict=True))
    assert changed == 50 + 5 + 5


def test_either_side_has_versions_of_its_own() -> None:
    texts = Texts(10)
    before = chunks(texts.next(ONE, 1))
    texts.next(ALL, 0)
    after = chunks(texts.next(ONE, 1))
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
