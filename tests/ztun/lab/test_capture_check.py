"""The row about the wire is wrong when anything was on it that should not be, and when nothing was seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ztun.lab.capture_check import stranger, strict, wire_row
from ztun.lab.demo import plan_mesh_of_examples
from ztun.lab.fabric import LoopbackFabric
from ztun.lab.lab import Lab
from ztun.lab.tap import Watch
from ztun.resources.documents import parse_documents
from ztun.resources.settings import MeshSettings
from ztun.resources.translation import translate

pytestmark = pytest.mark.unit


def lab() -> Lab:
    fabric = LoopbackFabric(210)
    return Lab(plan_mesh_of_examples(fabric), fabric, Path("unused"))


def test_a_quiet_wire_is_no_proof() -> None:
    row = wire_row(lab(), Watch(()))
    assert "no packet was seen between the nodes" in row.faults
    assert row.wire == "not TLS alone"


def test_what_was_not_in_a_tunnel_and_what_could_be_read_is_named() -> None:
    watch = Watch((b"word",), 1, 1, {b"word"}, packets_between_nodes=3)
    watch.strays.add("TCP 10.244.1.10:40000 -> 10.244.2.10:9000")
    assert wire_row(lab(), watch).faults == (
        "'word' was readable",
        "not in a tunnel: TCP 10.244.1.10:40000 -> 10.244.2.10:9000",
    )
    assert wire_row(lab(), Watch((), 1, 1, packets_between_nodes=3)).faults == ()


def test_the_documents_of_the_check_are_accepted() -> None:
    documents, problems = parse_documents(yaml.safe_dump_all([strict(), stranger()]), file="check.yaml")
    assert not problems
    assert [one.kind for one in documents] == ["PeerAuthentication", "Deployment"]
    snapshot = translate(documents[:1], settings=MeshSettings()).snapshot
    assert not [problem for problem in snapshot.problems if problem.severity == "error"]
