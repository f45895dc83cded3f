"""What the event loop of the proxy is doing: its tasks and where each of them waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io

ANSWER_SECONDS = 2.0  # an event loop that takes longer for a turn is itself the news
MAX_TASKS = 1000  # shown; a proxy with more has connections being set up, and one looks like the other
MAX_FRAMES = 8  # of each task, the innermost


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
    text = io.StringIO()
    text.write(f"{len(tasks)} tasks\n")
    for task in tasks[:MAX_TASKS]:
        text.write("\n")
        task.print_stack(limit=MAX_FRAMES, file=text)
    if len(tasks) > MAX_TASKS:
        text.write(f"\n... and {len(tasks) - MAX_TASKS} more\n")
    return text.getvalue()
