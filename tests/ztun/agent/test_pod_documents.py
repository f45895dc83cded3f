"""A directory of Pod documents, followed: who is wanted, and who is really gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ztun.agent.processes import pod_document
from ztun.agent.annotations import derived_uid
from ztun.agent.pod_documents import CONFIRM_SECONDS, PodDocuments, Wanted

pytestmark = pytest.mark.unit

LATER = CONFIRM_SECONDS * 1.5


def write(directory: Path, *documents: Mapping[str, Any], name: str = "pods.yaml") -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(yaml.safe_dump_all(documents))


def names(wanted: Wanted) -> set[str]:
    return {one.pod.name for one in wanted.pods.values()}


def namespace_document(name: str, mode: str = "") -> dict[str, Any]:
    labels = {"istio.io/dataplane-mode": mode} if mode else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def test_other_kinds_are_passed_over(tmp_path: Path) -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {}}
    write(tmp_path, service, pod_document("a"), {**pod_document("b"), "apiVersion": "example.com/v1"})
    wanted = PodDocuments(tmp_path).look(0)
    assert (names(wanted), wanted.certain, wanted.problems) == ({"a"}, True, ())


def test_a_namespace_of_another_file_decides(tmp_path: Path) -> None:
    write(tmp_path, namespace_document("default"), name="namespaces.yaml")
    write(tmp_path, pod_document("a"))
    documents = PodDocuments(tmp_path)
    assert names(documents.look(0)) == set()
    write(tmp_path, namespace_document("default", "ambient"), name="namespaces.yaml")
    assert names(documents.look(1)) == {"a"}


def test_a_file_will_do(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a"))
    documents = PodDocuments(tmp_path / "pods.yaml")
    assert names(documents.look(0)) == {"a"}
    assert documents.directories() == {tmp_path}


def test_gone_is_who_is_missing_for_some_time(tmp_path: Path) -> None:
    """However often somebody looks meanwhile: editors empty a file before they write it."""
    write(tmp_path, pod_document("a"), pod_document("b"))
    documents = PodDocuments(tmp_path)
    assert names(documents.look(0)) == {"a", "b"}
    write(tmp_path, pod_document("a"))
    for now in (1, 1, 1 + LATER / 2):
        assert names(documents.look(now)) == {"a", "b"}
        assert documents.doubtful
    assert names(documents.look(1 + LATER)) == {"a"}
    assert not documents.doubtful


def test_who_comes_back_was_never_gone(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a"))
    documents = PodDocuments(tmp_path)
    documents.look(0)
    write(tmp_path)
    assert names(documents.look(1)) == {"a"}
    write(tmp_path, pod_document("a"))
    assert names(documents.look(2)) == {"a"}
    assert not documents.doubtful
    write(tmp_path)
    assert names(documents.look(3)) == {"a"}  # doubted anew
    assert names(documents.look(3 + LATER)) == set()


def test_nobody_is_gone_while_something_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a"))
    write(tmp_path, pod_document("b"), name="more.yaml")
    documents = PodDocuments(tmp_path)
    documents.look(0)
    (tmp_path / "more.yaml").write_text("kind: [")
    for now in (1, 2 + LATER):
        wanted = documents.look(now)
        assert names(wanted) == {"a", "b"}
        assert not wanted.certain
        assert wanted.problems[0].location is not None
    (tmp_path / "more.yaml").unlink()
    documents.look(3)
    assert names(documents.look(3 + LATER)) == {"a"}


def test_a_directory_that_goes_away_takes_nobody_with_it(tmp_path: Path) -> None:
    directory = tmp_path / "pods"
    write(directory, pod_document("a"))
    documents = PodDocuments(directory)
    documents.look(0)
    (directory / "pods.yaml").unlink()
    directory.rmdir()
    documents.look(1)
    wanted = documents.look(1 + LATER)
    assert names(wanted) == {"a"}
    assert not wanted.certain
    assert documents.directories() == {tmp_path}


def test_an_earlier_agents_pods_are_not_gone_at_the_first_look(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a"))
    found = PodDocuments(tmp_path).look(0)
    write(tmp_path)
    documents = PodDocuments(tmp_path)
    documents.remember(found.pods.values())
    assert names(documents.look(5)) == {"a"}
    assert names(documents.look(5 + LATER)) == set()


def test_two_pods_with_one_uid(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a", uid="1"), pod_document("b", uid="1"))
    wanted = PodDocuments(tmp_path).look(0)
    assert names(wanted) == {"a"}
    assert "default/a has the same uid" in wanted.problems[0].message


def test_the_same_pod_twice_is_the_later_one(tmp_path: Path) -> None:
    write(tmp_path, pod_document("a", "one"), pod_document("a", "two"))
    wanted = PodDocuments(tmp_path).look(0)
    assert wanted.pods[derived_uid("default", "a")].netns.name == "two"
    assert [problem.code for problem in wanted.problems] == ["DUPLICATE"]
