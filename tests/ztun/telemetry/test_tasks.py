from __future__ import annotations

import asyncio
import threading

import pytest

from ztun.telemetry.tasks import MAX_TASKS, tasks_of

pytestmark = pytest.mark.unit


async def waits_here(event: asyncio.Event) -> None:
    await deeper(event)


async def deeper(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.asyncio
async def test_each_task_shows_its_name_and_where_it_waits() -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(waits_here(event), name="the one that waits")
        text = await asyncio.to_thread(tasks_of, asyncio.get_running_loop())
        event.set()
    assert text.startswith("2 tasks\n")
    shown = text.partition("the one that waits\n")[2].split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in shown] == ["waits_here", "deeper", "Event.wait"]
    assert __file__ in shown[0]


@pytest.mark.asyncio
async def test_so_many_are_shown_and_the_rest_counted() -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(MAX_TASKS + 4):
            group.create_task(waits_here(event))
        text = await asyncio.to_thread(tasks_of, asyncio.get_running_loop())
        event.set()
    assert text.startswith(f"{MAX_TASKS + 5} tasks\n")
    assert text.endswith("\n... and 5 more\n")


def test_a_loop_that_does_not_turn_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztun.telemetry.tasks.ANSWER_SECONDS", 0.01)
    release = threading.Event()
    running = threading.Event()

    async def stuck() -> None:
        running.set()
        release.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(stuck(),))
    thread.start()
    try:
        running.wait()
        with pytest.raises(TimeoutError, match="did not get to answer"):
            tasks_of(loop)
    finally:
        release.set()
        thread.join()
        loop.close()
