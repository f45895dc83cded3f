"""Files to objects: forms that are read, limits, and positions in messages."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, field_validator

from ztun.resources import chunks, yaml_text
from ztun.resources.documents import Document, parse_documents, read_documents, validate
from ztun.resources.schema import refuse
from ztun.resources.yaml_text import LONG_LIST, MAX_DEPTH, TextError, parse_chunk

pytestmark = pytest.mark.unit


def parse(text: str) -> list[Document]:
    documents, problems = parse_documents(text, file="mesh.yaml")
    assert problems == []
    return documents


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in parse_documents(text, file="mesh.yaml")[1]]


def pod(name: str = "a", extra: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n{extra}"


class TestForms:
    def test_several_documents_comments_and_empty_ones(self) -> None:
        text = f"# first\n---\n{pod('a')}---\n# nothing\n---\n{pod('b')}...\n---\n{pod('c')}--- # end\n"
        assert [document.name for document in parse(text)] == ["a", "b", "c"]

    def test_a_marker_inside_a_block_scalar_must_be_indented_to_be_text(self) -> None:
        (document,) = parse(pod("a", "data:\n  script: |\n    ---\n    echo\n"))
        assert document.data["data"]["script"] == "---\necho\n"

    @pytest.mark.parametrize("list_kind", ["List", "PodList"])
    def test_lists(self, list_kind: str) -> None:
        items = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}} for name in "ab"]
        if list_kind == "PodList":
            items[0].pop("kind")
        data = {"apiVersion": "v1", "kind": list_kind, "items": items}
        assert [document.label for document in parse(yaml.safe_dump(data))] == [
            "Pod default/a",
            "Pod default/b",
        ]
        assert [document.label for document in parse(json.dumps(data))] == ["Pod default/a", "Pod default/b"]

    def test_namespaces(self) -> None:
        namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n}"
        text = f"{pod('a', '  namespace: foo')}\n---\n{pod('b')}---\n{namespace}"
        documents, _ = parse_documents(text, file="f", namespace="bar")
        assert [(one.namespace, one.namespace_defaulted) for one in documents] == [
            ("foo", False),
            ("bar", True),
            ("", False),
        ]
        assert documents[2].label == "Namespace n"

    def test_created_order_and_key(self) -> None:
        text = pod("a", "  creationTimestamp: 2026-01-01T00:00:00Z\n") + "---\n" + pod("b")
        first, second = parse(text)
        assert (first.created, second.created) == ("2026-01-01T00:00:00Z", "")
        assert (first.order, second.order) == (0, 1)
        assert first.key == ("", "Pod", "default", "a")

    def test_scalars_are_read_as_kubernetes_reads_them(self) -> None:
        text = "a: 12:30\nb: 0777\nc: 2026-01-01\ne: on\nf: 0x1F\n80: x\nn: ~\no: 1.5\ns: '1'\nt: 1_000\n"
        assert parse_chunk(text) == {
            "a": "12:30",
            "b": 511,
            "c": "2026-01-01",
            "e": True,
            "f": 31,
            "80": "x",
            "n": None,
            "o": 1.5,
            "s": "1",
            "t": 1000,
        }

    @pytest.mark.parametrize("digits", ["1" * 5000, "-" + "1" * 5000, "1e999", "-1e999"])
    def test_a_number_that_no_field_can_have_is_text_in_json_and_yaml(self, digits: str) -> None:
        """Python refuses to read 5,000 digits, and to print as many."""
        assert parse_chunk(f'{{"a": {digits}}}') == parse_chunk(f"a: {digits}") == {"a": digits}

    @pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0b" + "1" * 65, ".inf", "-.INF", ".nan", "NaN"])
    def test_numbers_that_only_yaml_has(self, number: str) -> None:
        assert parse_chunk(f"a: {number}") == parse_chunk(f'{{"a": {number}}}') == {"a": number}

    def test_the_largest_numbers(self) -> None:
        text = "{0}, {0}, 0x{0:x}, -{1}".format(2**64 - 1, 2**63)
        assert parse_chunk(f"[{text}]") == [2**64 - 1, 2**64 - 1, 2**64 - 1, -(2**63)]

    def test_characters_in_two_halves(self) -> None:
        assert parse_chunk('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
        with pytest.raises(TextError) as raised:
            parse_chunk('{"a": "\\ud83d"}')
        assert (raised.value.line, raised.value.column) == (1, 10)

    def test_anchors_and_merge_keys(self) -> None:
        assert parse_chunk("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n")["b"] == {"p": 1, "q": 3}


class TestLimits:
    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            "- " * 100_000 + "a",
            "? " * 100_000,
            "{a: " * 5000,
            "\n".join(f"{' ' * depth}a:" for depth in range(3000)),
            "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
            json.dumps({"a": 1}).replace("1", "[" * 80 + "]" * 80),
        ],
        ids=["flow", "sequence", "keys", "mappings", "indentation", "just above", "json"],
    )
    def test_nesting(self, text: str) -> None:
        with pytest.raises(TextError):
            parse_chunk(text)

    def test_alias_expansion(self) -> None:
        levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
        with pytest.raises(TextError, match="aliases"):
            parse_chunk("\n".join(levels))

    def test_too_many_values_with_and_without_aliases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(yaml_text, "MAX_NODES", 50)
        values = ", ".join("x" * 60)
        for text in (f"a: [{values}]", f"a: [{values}] # *"):
            with pytest.raises(TextError, match="more than 50 values"):
                parse_chunk(text)

    @pytest.mark.parametrize("comment", ["", "# *"], ids=["taken apart", "counted"])
    def test_a_long_list_is_read_whole_and_in_order(self, comment: str) -> None:
        items = [{"name": f"pod-{number}", "ports": [number]} for number in range(3 * LONG_LIST)]
        text = yaml.safe_dump({"kind": "List", "items": items}, sort_keys=False)
        assert parse_chunk(text + comment) == {"kind": "List", "items": items}

    def test_an_alias_to_itself(self) -> None:
        with pytest.raises(TextError):
            parse_chunk("a: &a [*a]")

    @pytest.mark.parametrize(
        "text", ["x: !!python/object:os.system a", "x: !!binary aa", "x: !local a", "{[a]: b}", "a: 'x"]
    )
    def test_tags_and_bad_syntax(self, text: str) -> None:
        with pytest.raises(TextError):
            parse_chunk(text)


class TestComplaints:
    def test_a_duplicate_key(self) -> None:
        assert complaints(pod("a", "spec:\n  nodeName: x\n  nodeName: y\n")) == [
            "mesh.yaml:7:3: duplicate key 'nodeName' (remove one of the two)"
        ]
        assert "duplicate key 'a'" in complaints('{"a": 1, "a": 2}')[0]

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("metadata:\n\tname: x\n", "indent with spaces, not with tabs"),
            ("hosts: [*]\n", "put text that begins with * or & in quotes"),
            ("a: 1\n b: 2\n", "check the indentation, and put text that has a colon in quotes"),
            ("a: {{ .Values.x }\n", "is this a template? give what it renders to"),
        ],
    )
    def test_what_people_usually_mean(self, text: str, hint: str) -> None:
        with pytest.raises(TextError) as raised:
            parse_chunk(text)
        assert raised.value.hint == hint

    def test_an_error_in_one_document_leaves_the_others(self) -> None:
        documents, problems = parse_documents(f"{pod('a')}---\nx: [\n---\n{pod('b')}", file="mesh.yaml")
        assert [document.name for document in documents] == ["a", "b"]
        assert [(problem.code, problem.location and problem.location.line) for problem in problems] == [
            ("YAML", 6)
        ]

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("just text", "mesh.yaml:1:1: a Kubernetes object is expected"),
            ("a: 1", "mesh.yaml:1:1 apiVersion: required"),
            ("apiVersion: v1", "mesh.yaml:1:1 kind: required"),
            ("apiVersion: security.istio.io\nkind: X", "mesh.yaml:1:1 apiVersion: a group without a version"),
            ("apiVersion: v1\nkind: Pod", "mesh.yaml:1:1 Pod metadata: required"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {}", "mesh.yaml:3:1 Pod metadata.name: required"),
            (pod("'a b'"), "mesh.yaml:4:3 Pod metadata.name: required"),
            (pod("a/b"), "mesh.yaml:4:3 Pod metadata.name: required"),
            (pod("1"), "mesh.yaml:4:3 Pod metadata.name: required"),
            (pod("a", "  namespace: A"), "mesh.yaml:5:3 Pod a metadata.namespace: use lower-case"),
        ],
    )
    def test_an_object_without_a_usable_name(self, text: str, expected: str) -> None:
        (complaint,) = complaints(text)
        assert complaint.startswith(expected)

    def test_positions_in_lists_and_after_other_documents(self) -> None:
        text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n"
        _, document = parse(f"{pod('x')}---\n{text}")
        assert str(document.location) == "mesh.yaml:9:3"
        assert str(document.locate(("metadata", "name"))) == "mesh.yaml:11:14"
        assert str(document.locate(("metadata", "labels", "app"))) == "mesh.yaml:11:3"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    port: int
    name: str = ""

    @field_validator("name")
    @classmethod
    def _no_x(cls, name: str) -> str:
        if name == "x":
            raise refuse("x is taken", "use y", code="TAKEN")
        return name


class Outer(BaseModel):
    model_config = ConfigDict(strict=True)
    spec: list[Inner | str]


class TestValidate:
    def test_a_valid_document(self) -> None:
        (document,) = parse(pod("a", "spec:\n- port: 1\n"))
        model, problems = validate(Outer, document)
        assert model == Outer(spec=[Inner(port=1)])
        assert problems == []

    def test_every_problem_has_its_place(self) -> None:
        (document,) = parse(pod("a", "spec:\n- port: x\n- prot: 1\n- port: 1\n  name: x\n"))
        _, problems = validate(Outer, document)
        texts = [str(problem) for problem in problems]
        assert "mesh.yaml:6:3 Pod default/a spec[0].port: should be a whole number" in texts
        assert "mesh.yaml:7:3 Pod default/a spec[1].port: required" in texts
        assert any(
            text.startswith("mesh.yaml:7:3 Pod default/a spec[1].prot: unknown field") for text in texts
        )
        assert "mesh.yaml:9:3 Pod default/a spec[2].name: x is taken (use y)" in texts
        assert [problem.code for problem in problems if problem.message == "x is taken"] == ["TAKEN"]


class TestFiles:
    def test_directories_links_and_what_is_skipped(self, tmp_path: Path) -> None:
        (tmp_path / "..2026").mkdir()
        (tmp_path / "..2026" / "a.yaml").write_text(pod("a"))
        (tmp_path / "..data").symlink_to("..2026")
        (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.json").write_text(json.dumps(yaml.safe_load(pod("b"))))
        (tmp_path / "notes.txt").write_text("no")
        documents, problems = read_documents([tmp_path])
        assert [document.name for document in documents] == ["a", "b"]
        assert problems == []

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
        (tmp_path / "good.yaml").write_text(pod("a"))
        documents, problems = read_documents([tmp_path / "missing", tmp_path])
        assert [document.name for document in documents] == ["a"]
        assert [(problem.code, problem.object) for problem in problems] == [
            ("FILE", str(tmp_path / "missing")),
            ("FILE", str(tmp_path / "latin.yaml")),
        ]

    def test_a_pipe_in_a_directory_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.yaml")
        (tmp_path / "good.yaml").write_text(pod("a"))
        (tmp_path / "zero.yaml").symlink_to("/dev/zero")
        documents, problems = read_documents([tmp_path])
        assert [document.name for document in documents] == ["a"]
        assert [str(problem) for problem in problems] == [
            f"{tmp_path / 'x.yaml'}: cannot be read: a pipe, which nobody may write to: give a file",
            f"{tmp_path / 'zero.yaml'}: cannot be read: no regular file",
        ]

    def test_a_pipe_that_was_named_is_read(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, pod("a").encode())
        os.close(writer)
        documents, problems = read_documents([f"/dev/fd/{reader}"])
        os.close(reader)
        assert ([document.name for document in documents], problems) == (["a"], [])

    def test_the_later_of_two_counts(self, tmp_path: Path) -> None:
        (tmp_path / "1.yaml").write_text(pod("a", "spec: {nodeName: x}\n") + "---\n" + pod("b"))
        (tmp_path / "2.yaml").write_text(pod("a", "spec: {nodeName: y}\n"))
        documents, (problem,) = read_documents([tmp_path])
        assert [(one.name, one.order) for one in documents] == [("b", 0), ("a", 1)]
        assert documents[1].data["spec"]["nodeName"] == "y"
        assert (problem.code, problem.severity) == ("DUPLICATE", "warning")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), plain, min_size=1, max_size=4))
def test_json_and_yaml_of_the_same_data_are_the_same(data: dict[str, object]) -> None:
    assert parse_chunk(json.dumps(data)) == data
    (chunk,) = chunks.split_chunks(yaml.safe_dump(data, sort_keys=False))
    assert parse_chunk(chunk.text) == data


@given(st.text("# \t\n\r\x0b\x0c\x1c\x85\u2028a-", max_size=12))
def test_content_is_a_line_that_is_neither_empty_nor_a_comment(text: str) -> None:
    lines = [line.strip() for line in text.splitlines()]
    assert chunks._has_content(text) is any(line and not line.startswith("#") for line in lines)


@given(st.text("-.a \n", max_size=30))
def test_every_marker_begins_a_line_and_stands_alone(text: str) -> None:
    pattern = re.compile(r"^(?:---|\.\.\.)(?=[ \t\r\n]|\Z)", re.MULTILINE)
    assert [one.span() for one in chunks._markers(text)] == [one.span() for one in pattern.finditer(text)]


@given(st.text("ab\n", max_size=40), st.integers(1, 8))
def test_long_lines_are_all_found(text: str, length: int) -> None:
    assert list(yaml_text._long_lines(text, length)) == [
        line for line in text.split("\n") if len(line) >= length
    ]


@given(st.text("0123456789abefnoxtrulsyNOTFY.+-_:~<='\"#% ", max_size=12))
def test_plain_scalars_have_the_tags_that_pyyaml_gives_them(scalar: str) -> None:
    text = f"a: {scalar}\nb: [{scalar}]\n"
    try:
        expected = yaml.compose(text, Loader=yaml.CSafeLoader)
    except yaml.YAMLError:
        with pytest.raises(TextError):
            yaml_text._compose(text)
        return
    assert yaml.serialize(yaml_text._compose(text)) == yaml.serialize(expected)


@given(st.text(max_size=200) | st.text("-.:[]{}&*!|>'\"#% \n\tab1,?", max_size=80))
def test_arbitrary_text_gives_documents_or_problems(text: str) -> None:
    documents, problems = parse_documents(text, file="f")
    for document in documents:
        assert document.name
    for problem in problems:
        assert str(problem).startswith("f:")


numbers = st.builds(
    "{}{}".format,
    st.sampled_from(["", "-", "+", ".", "0x", "0b", "0o", "1e", "1.", "!!int ", "!!float ", "!!timestamp "]),
    st.builds(
        str.__mul__, st.sampled_from(["1", "0", "f", "1_", "1:", "9-"]), st.sampled_from([1, 20, 400, 5000])
    ),
)
escapes = st.lists(
    st.sampled_from(["\\ud800", "\\udc00", "\\u0000", "\\uD83D\\uDE00", "\\\\", "x", "\\x41"]), max_size=4
).map(lambda parts: f'"{"".join(parts)}"')


@given(
    st.sampled_from(["a: {}", "[{}]", '{{"a": {}}}', '{{{}: "a"}}', "&a [{}, *a]", "<<: {}", "- - {}\n- a"]),
    numbers | escapes,
)
def test_no_scalar_makes_reading_fail_or_whoever_prints_it(form: str, scalar: str) -> None:
    try:
        data = parse_chunk(form.format(scalar))
    except TextError as error:
        assert error.line
        return
    json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
