"""What can be asked of a running agent: bring a namespace in, let it out, say who is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ztun.agent.agent import Agent, Member, check_free, members_in
from ztun.agent.enrolments import Enrolment, PodIdentity, check_name
from ztun.agent.pod_documents import derived_uid
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError, EnrolmentError

SETTLE_SECONDS = 15.0  # three deadlines of the proxy's socket; a pod takes milliseconds


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
            return self.list()
        raise ConfigError("bad_request", f"there is no command {name!r}")

    async def enroll(self, netns: str, pod: str, namespace: str, account: str, dns: bool) -> dict[str, Any]:
        """Bring a namespace into the mesh as ``namespace/pod``, and wait until it is there.

        If that fails nothing is left of it. Repeating it for the same pod and namespace changes nothing.
        """
        agent, path = self._agent, _path(netns)
        identity = PodIdentity(
            derived_uid(check_name(namespace, "the namespace"), check_name(pod, "the pod")),
            pod,
            namespace,
            check_name(account, "the service account"),
        )
        wanted = Enrolment(identity, path, "command", CaptureOptions(dns=dns))
        opened = PodNamespace.open(path)
        try:
            check_free(agent, opened, wanted)
            same = [one for one in members_in(agent, opened) if one.enrolment.pod == identity]
        finally:
            opened.close()
        member = agent.members.get(identity.uid)
        if member is not None and (not same or member.enrolment.leaving):
            raise EnrolmentError(
                "already_enrolled",
                f"{identity} is enrolled with {member.enrolment.netns}",
                hint=f"ztun unenroll {member.enrolment.netns}",
            )
        if member is None:
            member = agent.members[identity.uid] = Member(wanted)
            agent.held.discard(identity.uid)
            agent.save()
        elif member.enrolment.options != wanted.options and member.enrolment.origin == "command":
            member.enrolment = replace(member.enrolment, options=wanted.options, captured=False)
        new = member.enrolment.record is None
        await self._wait(member, lambda: member.settled or member.gone or _failed(member))
        if member.gone:
            raise EnrolmentError("no_namespace", f"the network namespace {path} has gone in the meantime")
        if not member.settled:
            failure = member.failure or EnrolmentError("not_settled", f"{identity} was not enrolled in time")
            if new:
                await self._leave(member)
            raise failure
        return _described(member)

    async def unenroll(self, netns: str) -> dict[str, Any]:
        """Let a namespace out of the mesh, and wait until nothing of it is left."""
        path = _path(netns)
        found = [one for one in self._agent.members.values() if one.enrolment.netns == path]
        if not found:
            raise EnrolmentError(
                "not_enrolled",
                f"{path} is not enrolled",
                hint="'ztun enrolled' shows the namespaces that are",
            )
        return {"withdrawn": [_described(await self._leave(one)) for one in found]}

    async def unenroll_all(self) -> dict[str, Any]:
        """Let everybody out; pods with documents stay out until their document comes anew."""
        members = list(self._agent.members.values())
        return {"withdrawn": [_described(one) for one in await asyncio.gather(*map(self._leave, members))]}

    def list(self) -> dict[str, Any]:
        """Who is enrolled, by pod."""
        members = sorted(self._agent.members.values(), key=lambda one: str(one.enrolment.pod))
        return {"proxies": len(self._agent.proxies), "enrolments": [_described(one) for one in members]}

    async def _leave(self, member: Member) -> Member:
        enrolment = member.enrolment
        if enrolment.origin == "document":
            self._agent.held.add(enrolment.pod.uid)
        member.enrolment = replace(enrolment, leaving=True)
        self._agent.save()
        await self._wait(member, lambda: member.gone)
        if not member.gone:
            raise member.failure or EnrolmentError(
                "not_settled", f"{enrolment.pod} was not withdrawn in time"
            )
        return member

    async def _wait(self, member: Member, done: Callable[[], bool]) -> None:
        """Let the agent work until it is done, or for ``SETTLE_SECONDS``."""
        changed = asyncio.Event()
        member.watchers.append(changed.set)
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                self._agent.wake()
                while True:
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


def _path(netns: str) -> Path:
    path = Path(netns)
    if not path.is_absolute() or path.parts[:3] in (("/", "proc", "self"), ("/", "proc", "thread-self")):
        raise ConfigError(
            "bad_netns",
            f"{netns} does not name the same namespace for everybody",
            hint="a name as in 'ip netns list', or /proc/PID/ns/net of a process that lives as long as the pod",
        )
    return path


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
