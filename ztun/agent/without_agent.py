"""What works without an agent: capture of one's own network namespace, and undoing what a stopped agent has left.

A compose service, a VM or any process that has a proxy to itself captures its own namespace (dedicated mode). Only
the rules are set; the proxy is started there with ``ZTUN_CAPTURE=true`` and ``PACKET_MARK=1337``. While it does not
run, what the workload sends is refused.
"""

from __future__ import annotations

from pathlib import Path

from ztun.agent.capture import apply_capture, plan_capture, undo_capture
from ztun.agent.enrolments import Enrolment, PodIdentity, StateDirectory
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.record import CaptureRecord
from ztun.agent.rules import CaptureOptions
from ztun.agent.traces import look
from ztun.errors import EnrolmentError

DIRECTORY = "self"  # below the state directory: an agent may use that at the same time
MAX_REMEMBERED = 1024  # namespaces; that of a container that has ended is never asked for again

_POD = PodIdentity("self", "self", "default")


async def enroll_self(state: Path, options: CaptureOptions) -> None:
    """Capture the namespace of this process. Repeating it, also with other options, does no harm.

    Raises :class:`EnrolmentError` or :class:`ConfigError`; unless it was captured before nothing is left then.
    """
    namespace = PodNamespace.own()
    directory = StateDirectory(state / DIRECTORY)
    try:
        directory.lock()
        saved = {one.identity: one for one in directory.load().enrolments}
        identity = namespace.identity()
        earlier = saved.pop(identity, None)
        plan = await plan_capture(namespace, owner="self", earlier=earlier.record if earlier else None)
        record = plan.record
        others = list(saved.values())[-MAX_REMEMBERED:]

        def save(done: CaptureRecord) -> None:
            directory.save(
                [*others, Enrolment(_POD, namespace.path, "command", options, False, identity, done)]
            )

        save(record)
        try:
            done = await apply_capture(namespace, plan, options)
        except EnrolmentError:
            if not record.loaded:
                await undo_capture(namespace, record)
                directory.save(others)
            raise
        save(done)
    finally:
        directory.unlock()
        namespace.close()


async def unenroll_self(state: Path) -> bool:
    """Undo :func:`enroll_self`; whether there was anything to undo. Raises :class:`EnrolmentError`."""
    namespace = PodNamespace.own()
    directory = StateDirectory(state / DIRECTORY)
    try:
        directory.lock()
        saved = {one.identity: one for one in directory.load().enrolments}
        earlier = saved.pop(namespace.identity(), None)
        record = earlier.record if earlier is not None else (await look(namespace)).note
        if record is None or record.owner != "self":
            return False
        await undo_capture(namespace, record)
        directory.save(saved.values())
        return True
    finally:
        directory.unlock()
        namespace.close()


async def unenroll_all(state: Path) -> list[Enrolment]:
    """Undo everything an agent that no longer runs has done; gives who was enrolled.

    One that cannot be undone does not keep the others: the first error is raised at the end. Raises like the others.
    """
    directory = StateDirectory(state)
    directory.lock()
    failures: list[EnrolmentError] = []
    try:
        loaded = directory.load()
        left = {one.pod.uid: one for one in loaded.enrolments}
        for enrolment in loaded.enrolments:
            try:
                await _undo(enrolment)
            except EnrolmentError as error:
                failures.append(error)
                continue
            del left[enrolment.pod.uid]
            directory.save(left.values(), loaded.held)
    finally:
        directory.unlock()
    if failures:
        raise failures[0]
    return list(loaded.enrolments)


async def _undo(enrolment: Enrolment) -> None:
    try:
        namespace = PodNamespace.open(enrolment.netns)
    except EnrolmentError as error:
        if error.code == "no_namespace":
            return
        raise
    try:
        if enrolment.record is not None and namespace.identity() == enrolment.identity:
            await undo_capture(namespace, enrolment.record)
    finally:
        namespace.close()
