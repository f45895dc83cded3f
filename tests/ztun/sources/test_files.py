"""The file source: what a change does, what a broken one does not, and that state never goes backwards."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs.spiffe import SpiffeId
from ztun.errors import ConfigError
from ztun.mesh.authorization import Attempt, authorize
from ztun.mesh.document import Problem
from ztun.mesh.model import Workload
from ztun.mesh.snapshot import Snapshot
from ztun.sources import files, reading, watching
from ztun.sources.files import FileSource

pytestmark = pytest.mark.unit

WAIT_SECONDS = 30.0  # how long a test waits for what must come; never how long it takes


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    yield
    gc.unfreeze()


def service(name: str, port: int | str = 80) -> str:
    return f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"


def policy(ports: str) -> str:
    return (
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"
        f"spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: [{ports}]}}}}]}}]}}\n"
    )


def names(snapshot: Snapshot) -> str:
    return " ".join(sorted(found.name for found in snapshot.services.values()))


class Following:
    """A source that runs, and what it has called back."""

    def __init__(self, *paths: Path) -> None:
        self.snapshots: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.problems: asyncio.Queue[list[Problem]] = asyncio.Queue()
        self.source = FileSource(
            paths,
            on_snapshot=self.snapshots.put_nowait,
            on_problems=self.problems.put_nowait,
            poll_seconds=0.1,
        )
        self.first = self.source.load()

    async def next(self) -> Snapshot:
        async with asyncio.timeout(WAIT_SECONDS):
            return await self.snapshots.get()

    async def until(self, wanted: str) -> Snapshot:
        """The first snapshot with exactly these services; a change in several steps may show in several."""
        while names(snapshot := await self.next()) != wanted:
            pass
        return snapshot


@asynccontextmanager
async def following(*paths: Path) -> AsyncIterator[Following]:
    followed = Following(*paths)
    task = asyncio.create_task(followed.source.run())
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class TestLoad:
    def test_files_and_directories(self, tmp_path: Path) -> None:
        (tmp_path / "dir").mkdir()
        (tmp_path / "dir" / "a.yaml").write_text(service("a"))
        (tmp_path / "b.yaml").write_text(service("b"))
        snapshot = FileSource([tmp_path / "dir", tmp_path / "b.yaml"]).load()
        assert (names(snapshot), snapshot.generation, snapshot.problems) == ("a b", 1, ())

    def test_nothing_readable_is_an_error(self, tmp_path: Path) -> None:
        for paths in ([], [tmp_path / "missing"], [tmp_path / "missing", tmp_path / "too"]):
            with pytest.raises(ConfigError) as raised:
                FileSource(paths).load()
            assert "denied" not in str(raised.value), "nothing is served at all"

    def test_an_empty_directory_is_an_empty_mesh(self, tmp_path: Path) -> None:
        assert names(FileSource([tmp_path]).load()) == ""

    def test_the_healthy_part_of_a_broken_configuration_loads(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(service("a") + "---\nx: [\n" + service("b"))
        snapshot = FileSource([tmp_path, tmp_path / "missing"]).load()
        assert names(snapshot) == "a b"
        assert sorted(problem.code for problem in snapshot.problems) == ["FILE", "YAML"]

    def test_the_namespace_of_objects_that_name_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(service("a"))
        snapshot = FileSource([tmp_path], namespace="foo").load()
        assert list(snapshot.services) == [("foo", "a.foo.svc.cluster.local")]

    def test_a_second_load_reads_again(self, tmp_path: Path) -> None:
        source = FileSource([tmp_path])
        source.load()
        (tmp_path / "a.yaml").write_text(service("a"))
        snapshot = source.load()
        assert (names(snapshot), snapshot.generation) == ("a", 2)

    def test_loading_leaves_the_collector_as_it_was(self, tmp_path: Path) -> None:
        FileSource([tmp_path]).load()
        assert gc.isenabled()


BROKEN_POLICY = policy("'80'").replace("spec:", "spec: [")


def denies_everything(snapshot: Snapshot) -> bool:
    """Whether a connection is denied that no policy of these tests is about."""
    pod = Workload("u", "pod", "elsewhere", ("10.0.0.1",))
    attempt = Attempt("10.0.0.2", SpiffeId("cluster.local", "elsewhere", "client"), "10.0.0.1", 9000)
    waypoints = snapshot.policies_targeting(
        "istio-system", "gateway.networking.k8s.io", "GatewayClass", "istio-waypoint"
    )
    verdicts = {authorize(found, attempt).allowed for found in (snapshot.policies_for(pod), waypoints)}
    assert len(verdicts) == 1, "pods and waypoints are judged alike"
    return not verdicts.pop()


class TestWhatCannotBeReadFromTheStart:
    """There is no last good state, and a policy may be in it: a restart must not open what was closed."""

    @pytest.mark.parametrize(
        ("text", "denied"),
        [
            (service("a") + "---\n" + BROKEN_POLICY, True),
            (service("a") + "---\n" + policy("'80'").replace("name: p", "nmae: p"), True),
            (service("a") + "---\nkind: PeerAuthentication\n\tx: 1\n", True),
            (service("a") + "---\n" + policy("'80'").replace("istio.io/v1", "istio.io"), True),
            (service("a") + "---\n{{ if .Values.a }}\n", False),
            (service("a") + "---\nx: [\n---\n" + policy("'80'"), False),
            (service("a") + "---\n- just\n- a list\n", False),
            (service("a"), False),
        ],
    )
    def test_closes_if_a_policy_may_be_in_it(self, tmp_path: Path, text: str, denied: bool) -> None:
        (tmp_path / "a.yaml").write_text(text)
        snapshot = FileSource([tmp_path]).load()
        assert names(snapshot) == "a"
        assert denies_everything(snapshot) is denied
        said = [
            problem for problem in snapshot.problems if "every inbound connection is denied" in str(problem)
        ]
        assert bool(said) is denied

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
    def test_closes_if_nobody_knows_what_is_in_it(self, tmp_path: Path, content: bytes | None) -> None:
        (tmp_path / "a.yaml").write_text(service("a"))
        policies = tmp_path / "policies.yaml"
        if content is not None:
            policies.write_bytes(content)
        source = FileSource([tmp_path / "a.yaml", policies])
        assert denies_everything(source.load())
        policies.write_text(policy("'80'"))
        healed = source.look()
        assert healed is not None
        assert not denies_everything(healed)
        assert healed.problems == ()

    def test_stays_closed_until_it_can_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "a.yaml"
        path.write_text(service("a") + "---\n" + BROKEN_POLICY)
        source = FileSource([tmp_path])
        source.load()
        path.write_text(service("b") + "---\n" + BROKEN_POLICY)
        still = source.look()
        assert still is not None
        assert denies_everything(still)
        path.write_text("")
        still = source.look()
        assert still is not None
        assert denies_everything(still), "an editor may be writing it"
        path.write_text(BROKEN_POLICY)
        still = source.look()
        assert still is not None
        assert denies_everything(still)
        path.write_text(service("b") + "---\n" + policy("'80'"))
        healed = source.look()
        assert healed is not None
        assert not denies_everything(healed)

    def test_a_fault_of_the_reader_is_a_file_that_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.yaml").write_text(service("a"))
        (tmp_path / "b.yaml").write_text(service("b"))
        healthy = reading.parse_documents

        def broken(text: str, *, file: str, **options: Any) -> Any:
            if file.endswith("b.yaml"):
                raise ValueError("Exceeds the limit (4300 digits)")
            return healthy(text, file=file, **options)

        monkeypatch.setattr(reading, "parse_documents", broken)
        source = FileSource([tmp_path])
        closed = source.load()
        assert names(closed) == "a"
        assert denies_everything(closed), "nobody knows what is in it"
        assert "4300 digits" in str(closed.problems[0])
        monkeypatch.undo()
        healed = source.look()
        assert healed is not None
        assert names(healed) == "a b"
        assert not denies_everything(healed)
        monkeypatch.setattr(reading, "parse_documents", broken)
        (tmp_path / "b.yaml").write_text(service("c"))
        kept = source.look()
        assert kept is not None
        assert names(kept) == "a b"

    def test_what_breaks_later_or_comes_broken_is_not_denied_for(self, tmp_path: Path) -> None:
        """The last good state is in force, so nothing is open that was closed."""
        path = tmp_path / "a.yaml"
        path.write_text(service("a") + "---\n" + policy("'80'"))
        source = FileSource([tmp_path])
        first = source.load()
        path.write_text(service("a") + "---\n" + BROKEN_POLICY)
        (tmp_path / "new.yaml").write_text(BROKEN_POLICY)
        (tmp_path / "newer.yaml").write_bytes(b"\xff")
        broken = source.look()
        assert broken is not None
        assert broken.policies == first.policies
        assert not denies_everything(broken)


def test_a_number_of_5000_digits_is_left_where_it_stands(tmp_path: Path) -> None:
    """It ended the proxy, and every one that was started after it."""
    (tmp_path / "a.json").write_text(json.dumps(yaml.safe_load(service("a"))).replace("80", "1" * 5000))
    (tmp_path / "b.yaml").write_text(service("b"))
    snapshot = FileSource([tmp_path]).load()
    assert names(snapshot) == "b"
    (problem,) = snapshot.problems
    assert "spec.ports[0].port: should be a whole number" in str(problem)


@pytest.mark.asyncio
class TestRun:
    async def test_a_file_that_appears_changes_and_goes(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(service("a"))
        async with following(tmp_path) as followed:
            assert names(followed.first) == "a"
            (tmp_path / "b.yaml").write_text(service("b"))
            second = await followed.until("a b")
            (tmp_path / "b.yaml").write_text(service("c"))
            await followed.until("a c")
            (tmp_path / "b.yaml").unlink()
            last = await followed.until("a")
            assert followed.first.generation < second.generation < last.generation

    async def test_a_single_file_that_is_replaced(self, tmp_path: Path) -> None:
        file = tmp_path / "mesh.yaml"
        file.write_text(service("a"))
        async with following(file) as followed:
            (tmp_path / "other.yaml").write_text(service("x"))
            new = tmp_path / "mesh.yaml.new"
            new.write_text(service("b"))
            new.rename(file)
            await followed.until("b")

    async def test_a_directory_that_appears_below(self, tmp_path: Path) -> None:
        async with following(tmp_path) as followed:
            (tmp_path / "sub").mkdir()
            (tmp_path / "sub" / "a.yaml").write_text(service("a"))
            await followed.until("a")
            (tmp_path / "sub" / "a.yaml").write_text(service("b"))
            await followed.until("b")

    async def test_a_path_that_comes_later(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(service("a"))
        late = tmp_path / "later" / "b.yaml"
        async with following(tmp_path / "a.yaml", late) as followed:
            late.parent.mkdir()
            late.write_text(service("b"))
            await followed.until("a b")

    async def test_a_mounted_config_map_is_swapped(self, tmp_path: Path) -> None:
        for version, name in (("..1", "a"), ("..2", "b")):
            (tmp_path / version).mkdir()
            (tmp_path / version / "mesh.yaml").write_text(service(name))
        (tmp_path / "..data").symlink_to("..1")
        (tmp_path / "mesh.yaml").symlink_to("..data/mesh.yaml")
        async with following(tmp_path) as followed:
            assert names(followed.first) == "a"
            (tmp_path / "..data_tmp").symlink_to("..2")
            (tmp_path / "..data_tmp").rename(tmp_path / "..data")
            await followed.until("b")

    async def test_a_syntax_error_keeps_the_objects_of_that_file_and_follows_the_others(
        self, tmp_path: Path
    ) -> None:
        first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
        first.write_text(service("a") + policy("'80'"))
        second.write_text(service("b"))
        async with following(tmp_path) as followed:
            first.write_text(service("c") + "x: [\n")
            broken = await followed.next()
            assert names(broken) == "a b"
            assert broken.policies == followed.first.policies
            (problem,) = broken.problems
            assert str(problem).startswith(f"{first}:6:5:")
            assert problem.hint.endswith("all objects of this file stay as they were")
            assert await followed.problems.get() == [problem]
            second.write_text(service("d"))
            await followed.until("a d")
            first.write_text(service("c"))
            healed = await followed.until("c d")
            assert healed.problems == ()
            assert not healed.policies

    async def test_a_policy_that_breaks_stays_as_it_was(self, tmp_path: Path) -> None:
        file = tmp_path / "p.yaml"
        file.write_text(policy("'80'"))
        async with following(file) as followed:
            file.write_text(policy("'80', 'x'"))
            broken = await followed.next()
            assert broken.policies == followed.first.policies
            assert "stays in force" in str(broken.problems[0])
            file.write_text(policy("'81'"))
            healed = await followed.next()
            assert healed.policies != followed.first.policies
            assert healed.problems == ()

    async def test_an_object_that_loses_its_name_does_not_disappear(self, tmp_path: Path) -> None:
        file = tmp_path / "p.yaml"
        file.write_text(policy("'80'"))
        async with following(file) as followed:
            file.write_text(policy("'80'").replace("name: p", "nmae: p"))
            broken = await followed.next()
            assert broken.policies == followed.first.policies

    async def test_a_file_that_cannot_be_read_any_more_keeps_its_objects(self, tmp_path: Path) -> None:
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with following(tmp_path) as followed:
            file.write_bytes(b"\xff\xfe\x00")
            broken = await followed.next()
            assert names(broken) == "a"
            assert [problem.code for problem in broken.problems] == ["FILE"]

    async def test_a_directory_that_vanishes_keeps_its_objects(self, tmp_path: Path) -> None:
        directory = tmp_path / "mesh"
        directory.mkdir()
        (directory / "a.yaml").write_text(service("a"))
        async with following(directory) as followed:
            directory.rename(tmp_path / "gone")
            broken = await followed.next()
            assert names(broken) == "a"
            (tmp_path / "gone").rename(directory)
            healed = await followed.next()
            assert (names(healed), healed.problems) == ("a", ())

    async def test_without_a_watch_changes_are_found_by_looking(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The kernel gives a user 128 instances, and other processes may have taken them all."""

        async def refused(*paths: Path, **options: object) -> AsyncIterator[object]:
            raise RuntimeError("Too many open files (os error 24)")
            yield

        with monkeypatch.context() as patched:
            patched.setattr(watching, "awatch", refused)
            async with following(tmp_path) as followed:
                (problem,) = await followed.problems.get()
                assert "fs.inotify.max_user_instances" in problem.hint
                (tmp_path / "a.yaml").write_text(service("a"))
                await followed.until("a")
                assert await followed.problems.get() == []
                patched.undo()
                (tmp_path / "a.yaml").write_text(service("b"))
                await followed.until("b")

    async def test_a_directory_that_goes_before_it_is_watched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.yaml").write_text(service("a"))
        listed = FileSource._directories

        def and_removed(source: FileSource) -> set[Path]:
            found = listed(source)
            shutil.rmtree(tmp_path / "sub", ignore_errors=True)
            return found

        monkeypatch.setattr(FileSource, "_directories", and_removed)
        async with following(tmp_path) as followed:
            await followed.until("")
            (tmp_path / "b.yaml").write_text(service("b"))
            await followed.until("b")

    async def test_a_look_that_fails_changes_nothing_is_said_once_and_repeated(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody thought of it, so nobody knows what; a proxy with open connections must not end for it."""
        (tmp_path / "a.yaml").write_text(service("a"))
        failed = asyncio.Semaphore(0)

        def broken(*_: object, **__: object) -> None:
            failed.release()
            raise KeyError("forgotten")

        async with following(tmp_path) as followed:
            with monkeypatch.context() as patched:
                patched.setattr(files, "translate", broken)
                (tmp_path / "a.yaml").write_text(service("b"))
                for _ in range(3):
                    await failed.acquire()
            await followed.until("b")
            (problem,) = await followed.problems.get()
            assert (problem.code, problem.object) == ("FAULT", str(tmp_path))
            assert "KeyError('forgotten') at " in problem.message
            assert "everything stays as it was" in problem.hint
            assert await followed.problems.get() == [], "those of the state that could be read"

    async def test_a_path_that_the_system_refuses_to_look_at(self, tmp_path: Path) -> None:
        """As a directory that may not be searched, which root can search."""
        async with following(tmp_path, tmp_path / ("x" * 300)) as followed:
            (tmp_path / "a.yaml").write_text(service("a"))
            await followed.until("a")

    async def test_unchanged_content_is_no_new_state(self, tmp_path: Path) -> None:
        file = tmp_path / "a.yaml"
        file.write_text(service("a"))
        async with following(tmp_path) as followed:
            file.write_text(service("a"))
            (tmp_path / "notes.txt").write_text("x")
            (tmp_path / "b.yaml").write_text(service("b"))
            # The first and only new state is that of the last change.
            assert names(await followed.next()) == "a b"
            assert followed.snapshots.empty()


class TestAnEmptiedFile:
    def test_is_believed_at_the_second_look(self, tmp_path: Path) -> None:
        """Some editors empty a file before they write it; no pod may go for that."""
        path = tmp_path / "mesh.yaml"
        path.write_text(service("a"))
        source = FileSource([path])
        source.load()
        path.write_text("")
        assert source.look() is None
        emptied = source.look()
        assert emptied is not None
        assert names(emptied) == ""

    def test_that_is_filled_again_was_never_empty(self, tmp_path: Path) -> None:
        path = tmp_path / "mesh.yaml"
        path.write_text(service("a"))
        source = FileSource([path])
        source.load()
        path.write_text("")
        assert source.look() is None
        path.write_text(service("a") + service("b"))
        filled = source.look()
        assert filled is not None
        assert names(filled) == "a b"
