"""Notices of changed files: what is said, and done instead, where there can be none."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import watchfiles

from ztun.mesh.document import Problem
from ztun.sources import watching
from ztun.sources.watching import Watch

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]

NO_INSTANCES = RuntimeError("Error creating recommended watcher: Too many open files (os error 24)")


class Kernel:
    """Gives watches, or refuses them with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.error = error
        monkeypatch.setattr(watching, "awatch", self._watch)

    def _watch(self, *paths: Path, **options: object) -> object:
        if self.error is not None:
            return _refused(self.error)
        return watchfiles.awatch(*paths, **options)  # type: ignore[arg-type]


async def _refused(error: Exception) -> object:
    raise error
    yield


async def one_notice(watch: Watch, directory: Path) -> bool:
    async with aclosing(watch.notices([directory])) as notices:
        return await anext(notices)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (NO_INSTANCES, "fs.inotify.max_user_instances"),
        (OSError("OS file watch limit reached"), "fs.inotify.max_user_watches"),
        (PermissionError("Permission denied (os error 13)"), "right to read it"),
        (ExceptionGroup("in the thread that waits", [NO_INSTANCES]), "fs.inotify"),
    ],
)
async def test_no_watch_is_a_look_and_one_warning_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, hint: str
) -> None:
    problems: list[Problem] = []
    kernel = Kernel(monkeypatch, error)
    watch = Watch(problems.append, poll_seconds=0.01)
    for _ in range(3):
        assert [notice async for notice in watch.notices([tmp_path])] == [False]
    (problem,) = problems
    assert (problem.code, problem.severity, problem.object) == ("WATCH", "warning", str(tmp_path))
    assert hint in problem.hint
    kernel.error = None
    assert not await one_notice(watch, tmp_path), "nothing has changed"
    kernel.error = error
    await one_notice(watch, tmp_path)
    assert len(problems) == 2, "there was a watch in between"


async def test_a_directory_that_went_since_it_was_listed(tmp_path: Path) -> None:
    problems: list[Problem] = []
    watch = Watch(problems.append, poll_seconds=0.01)
    gone = tmp_path / "gone"
    assert [notice async for notice in watch.notices([tmp_path, gone])] == [False]
    assert "removed" in problems[0].hint
