"""What can be asked of a running agent: bring a namespace in, let it out, say who is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ztun.agent.agent import Agent
from ztun.agent.annotations import derived_uid
from ztun.agent.enrolments import Enrolment, PodIdentity, check_name
from ztun.agent.members import Member, check_free
from ztun.agent.places import namespace_path
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError, EnrolmentError

SETTLE_SECONDS = 15.0  # three deadlines of the proxy's socket; a pod takes milliseconds
EACH_SECONDS = 0.5  # for each pod more, several times what it takes on a busy machine
MAX_NAMED = 5  # pods in one message


class Commands:
    """Carries out requests; each is a mapping with ``command`` and the arguments of the method of that name."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request and give the answer. Raises ``ZtunError``."""
        name = request.get("command")
        arguments = {key: value for key, value in request.items() if key != "command"}
        if name == "enroll":
            return await self.enroll(
                **_checked(arguments, netns=str, pod=str, namespace=str, account=str, dns=bool)
            )
        if name == "unenroll":
            return await self.unenroll(**_checked(arguments, netns=str))
        if name == "unenroll-all":
            return await self.unenroll_all()
        if name == "list":
            return self.enrolled()
        raise ConfigError("bad_request", f"there is no command {name!r}")

    async def enroll(self, netns: str, pod: str, namespace: str, account: str, dns: bool) -> dict[str, Any]:
        """Bring a namespace into the mesh as ``namespace/pod``, and wait until it is there.

        If that fails nothing is left of it. Repeating it for the same pod and namespace changes nothing.
        """
        members, path = self._agent.members, namespace_path(netns)
        identity = PodIdentity(
            derived_uid(check_name(namespace, "the namespace"), check_name(pod, "the pod")),
            pod,
            namespace,
            check_name(account, "the service account"),
        )
        wanted = Enrolment(identity, path, "command", CaptureOptions(dns=dns))
        member = self._same(wanted)
        new, was_held = member is None, identity.uid in self._agent.held
        if member is None:
            member = members[identity.uid] = Member(wanted)
            self._agent.held.discard(identity.uid)
            try:
                self._agent.save()
            except ConfigError:
                del members[identity.uid]
                if was_held:
                    self._agent.held.add(identity.uid)
                raise
        elif member.enrolment.origin == "command":
            member.want(wanted.options)
        try:
            await self._wait(member, lambda: member.settled or member.gone or _failed(member))
        except asyncio.CancelledError:
            if new and not member.settled:
                self._undo(member, was_held)  # nobody was told that it worked
            raise
        if member.enrolment.leaving:
            raise EnrolmentError(
                "withdrawn",
                f"{identity} was taken out again in the meantime",
                hint="did somebody call 'ztun unenroll'?",
            )
        if member.gone:
            raise EnrolmentError("no_namespace", f"the network namespace {path} has gone in the meantime")
        if not member.settled:
            failure = member.failure or EnrolmentError("not_settled", f"{identity} was not enrolled in time")
            if new:
                self._undo(member, was_held)
                await self._until_gone([member])
            raise failure
        return _described(member)

    def _same(self, wanted: Enrolment) -> Member | None:
        """Whoever is enrolled just so; raises :class:`EnrolmentError` when the pod or the namespace is not free."""
        member = self._agent.members.get(wanted.pod.uid)
        opened = PodNamespace.open(wanted.netns)
        try:
            check_free(self._agent.members, opened, wanted)
            here = member is not None and member.namespace is not None and member.namespace.key == opened.key
        finally:
            opened.close()
        if member is None:
            return None
        now = member.enrolment
        if now.leaving:
            raise EnrolmentError(
                "still_leaving",
                f"{now.pod} is on its way out of the mesh ({now.netns})",
                hint="'ztun enrolled' shows what keeps it; then try again",
            )
        if not here or now.pod != wanted.pod:
            raise EnrolmentError(
                "already_enrolled",
                f"{now.pod} is enrolled with {now.netns} and the service account {now.pod.service_account}",
                hint=f"ztun unenroll {now.netns}",
            )
        return member

    async def unenroll(self, netns: str) -> dict[str, Any]:
        """Let a namespace out of the mesh, and wait until nothing of it is left."""
        path = namespace_path(netns)
        found = [one for one in self._agent.members.values() if one.is_at(path)]
        if not found:
            raise EnrolmentError(
                "not_enrolled",
                f"{path} is not enrolled",
                hint="'ztun enrolled' shows the namespaces that are",
            )
        return {"withdrawn": await self._leave(found)}

    async def unenroll_all(self) -> dict[str, Any]:
        """Let everybody out; pods with documents stay out until their document comes anew."""
        return {"withdrawn": await self._leave(list(self._agent.members.values()))}

    def enrolled(self) -> dict[str, Any]:
        """Who is enrolled, by pod."""
        members = sorted(self._agent.members.values(), key=lambda one: str(one.enrolment.pod))
        return {"proxies": len(self._agent.proxies), "enrolments": [_described(one) for one in members]}

    async def _leave(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        """Let pods out and wait until they are; those that documents want stay out."""
        agent = self._agent
        held_before, staying = set(agent.held), [one for one in members if not one.enrolment.leaving]
        for member in members:
            uid = member.enrolment.pod.uid
            if member.enrolment.origin == "document" or agent.documented(uid):
                agent.held.add(uid)
            member.leave()
        try:
            agent.save()
        except ConfigError:
            agent.held = held_before
            for member in staying:
                member.stay()
            raise
        await self._until_gone(members)
        return [_described(member) for member in members]

    def _undo(self, member: Member, was_held: bool) -> None:
        """Nothing is to be left of an attempt to bring it in."""
        if was_held:
            self._agent.held.add(member.enrolment.pod.uid)
        member.leave()
        with contextlib.suppress(ConfigError):  # the loop writes it down before it does anything else
            self._agent.save()

    async def _until_gone(self, members: Sequence[Member]) -> None:
        """Let the agent withdraw them. Raises :class:`EnrolmentError` of what keeps one in."""
        seconds = SETTLE_SECONDS + EACH_SECONDS * len(members)
        await asyncio.gather(*(self._wait(one, lambda one=one: one.gone, seconds) for one in members))  # type: ignore[misc]
        left = [member for member in members if not member.gone]
        if left:
            names = ", ".join(str(member.enrolment.pod) for member in left[:MAX_NAMED])
            more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
            failure = next((one.failure for one in left if one.failure), None)
            why = f": {failure}" if failure else ""
            raise EnrolmentError(
                failure.code if failure else "not_settled",
                f"{names}{more}: not withdrawn yet{why}",
                hint=(failure.hint if failure else "")
                or "the agent goes on trying; 'ztun enrolled' shows how it stands",
            )

    async def _wait(self, member: Member, done: Callable[[], bool], seconds: float = SETTLE_SECONDS) -> None:
        """Let the agent work until it is done, or for so long."""
        changed = asyncio.Event()
        member.watchers.append(changed.set)
        try:
            async with asyncio.timeout(seconds):
                self._agent.wake()
                while not member.gone:
                    await changed.wait()
                    changed.clear()
                    if done():
                        return
        except TimeoutError:
            return
        finally:
            member.watchers.remove(changed.set)


def _failed(member: Member) -> bool:
    """Whether trying again is not going to help by itself; a proxy may still connect."""
    return member.failure is not None and member.failure.code != "zds_no_proxy"


def _checked(arguments: Mapping[str, Any], **types: type) -> dict[str, Any]:
    if arguments.keys() != types.keys():
        raise ConfigError(
            "bad_request", f"expected {', '.join(types)}, got {', '.join(arguments) or 'nothing'}"
        )
    for name, kind in types.items():
        if not isinstance(arguments[name], kind):
            raise ConfigError("bad_request", f"{name} should be of type {kind.__name__}")
    return dict(arguments)


def _described(member: Member) -> dict[str, Any]:
    enrolment = member.enrolment
    if enrolment.leaving:
        state = "gone" if member.gone else "leaving"
    elif member.settled:
        state = "enrolled"
    else:
        state = "captured" if enrolment.captured else "waiting"
    return {
        "namespace": enrolment.pod.namespace,
        "pod": enrolment.pod.name,
        "serviceAccount": enrolment.pod.service_account,
        "uid": enrolment.pod.uid,
        "netns": str(enrolment.netns),
        "origin": enrolment.origin,
        "state": state,
        "problem": str(member.failure or ""),
    }
