"""What works without an agent: capture of one's own network namespace, and undoing what a stopped agent has left.

A compose service, a VM or any process that has a proxy to itself captures its own namespace. Only the rules are set;
the proxy is started there with ``ZTUN_CAPTURE=true`` and ``PACKET_MARK=1337``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ztun.agent.capture import apply_capture, digest, plan_capture, undo_capture
from ztun.agent.enrolments import Enrolment, PodIdentity, StateDirectory
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.rules import CaptureOptions
from ztun.errors import EnrolmentError

DIRECTORY = "self"  # below the state directory: an agent may use that at the same time

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
        earlier = saved.get(identity)
        if earlier is not None and earlier.record is not None:
            record = replace(earlier.record, program=digest(options))
        else:
            record = await plan_capture(namespace, options)
        enrolment = Enrolment(_POD, namespace.path, "command", options, identity, record)
        directory.save([*({**saved, identity: enrolment}).values()])
        try:
            await apply_capture(namespace, record, options)
        except EnrolmentError:
            if earlier is None:
                await undo_capture(namespace, record)
                directory.save(saved.values())
            raise
        directory.save([*({**saved, identity: replace(enrolment, captured=True)}).values()])
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
        if earlier is None or earlier.record is None:
            return False
        await undo_capture(namespace, earlier.record)
        directory.save(saved.values())
        return True
    finally:
        directory.unlock()
        namespace.close()


async def unenroll_all(state: Path) -> list[Enrolment]:
    """Undo everything an agent that no longer runs has done; gives who was enrolled. Raises like the others."""
    directory = StateDirectory(state)
    directory.lock()
    try:
        loaded = directory.load()
        left = {one.pod.uid: one for one in loaded.enrolments}
        for enrolment in loaded.enrolments:
            if enrolment.record is not None:
                await _undo(enrolment)
            del left[enrolment.pod.uid]
            directory.save(left.values(), loaded.held)
        return list(loaded.enrolments)
    finally:
        directory.unlock()


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
