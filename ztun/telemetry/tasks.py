"""What the event loop of the proxy is doing: its tasks and where each of them waits."""

from __future__ import annotations

import asyncio
import concurrent.futures

ANSWER_SECONDS = 2.0  # an event loop that takes longer for a turn is itself the news
MAX_TASKS = 1000  # shown; a proxy with more has connections being set up, and one looks like the other
MAX_FRAMES = 16  # of each task, from the outermost


def tasks_of(loop: asyncio.AbstractEventLoop) -> str:
    """The tasks of a loop as text, asked for from another thread.

    Raises ``TimeoutError`` when the loop does not get to answer.
    """
    asked: concurrent.futures.Future[str] = concurrent.futures.Future()

    def answer() -> None:
        if asked.set_running_or_notify_cancel():
            asked.set_result(_describe(loop))

    loop.call_soon_threadsafe(answer)
    try:
        return asked.result(ANSWER_SECONDS)
    except concurrent.futures.TimeoutError:
        asked.cancel()
        raise TimeoutError(f"the event loop did not get to answer within {ANSWER_SECONDS:g} s") from None


def _describe(loop: asyncio.AbstractEventLoop) -> str:
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    lines = [f"{len(tasks)} tasks"]
    for task in tasks[:MAX_TASKS]:
        lines += ["", task.get_name(), *(f"  {place}" for place in _places(task.get_coro()))]
    if len(tasks) > MAX_TASKS:
        lines += ["", f"... and {len(tasks) - MAX_TASKS} more"]
    return "\n".join(lines) + "\n"


def _places(coroutine: object) -> list[str]:
    """Where a coroutine is, and what it awaits is, and so on; ``Task.print_stack`` stops at the first of them."""
    places: list[str] = []
    while coroutine is not None and len(places) < MAX_FRAMES:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return places
