"""The node agent: whoever is wanted in the mesh is brought in, whoever is not is let out, and nobody is left halfway.

All changes are made by one loop. What is wanted (Pod documents, commands) and what is there (proxies, namespaces) may
change at any time; each only wakes the loop, which compares and does what is missing.

What happens when:

- *A pod is wanted.* A proxy is told of it and listens in its namespace, then the rules are loaded. Until a proxy is
  there the pod stays as it was, not captured; ``ztun enroll`` says so and leaves nothing behind. Connections that
  are open when the rules are loaded are cut, as with istio-cni's rules, and are captured when they are made anew.
- *It is wanted no more.* The rules are unloaded, all proxies are told, the namespace is let go.
- *It is wanted elsewhere* (another namespace, another service account). It is let out, then brought in again.
- *Its namespace is deleted,* or its name leads to another one: the proxies are told, and it is forgotten. Whatever
  lives on in the old namespace stays captured without a proxy: what it sends is refused.
- *No proxy is connected.* Rules stay: what captured pods send is refused rather than sent in plaintext.
- *A proxy connects.* It is told of everybody. Of two, the latest is told of new pods, both are told who leaves.
- *The agent ends,* or is killed. Rules stay and the proxy goes on serving; a new agent takes up the state from disk,
  completes what was begun and loads the rules of every pod again (at one moment, so no connection notices).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Set
from pathlib import Path

from ztun.agent.capture import apply_capture, plan_capture, undo_capture
from ztun.agent.conversation import Conversation
from ztun.agent.enrolments import Enrolment, StateDirectory
from ztun.agent.members import Member, check_free
from ztun.agent.pod_documents import CONFIRM_SECONDS, PodDocuments, Wanted
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.proxies import Proxies
from ztun.errors import ConfigError, EnrolmentError, ZdsError, ZtunError
from ztun.net.namespaces import DESCRIPTORS_EACH
from ztun.telemetry.logging import get_logger
from ztun.zds.messages import AddWorkload, KeepWorkload, SnapshotSent

RETRY_SECONDS = 5.0  # what did not work is tried again this often, as ztunnel does with its pending pods
AT_ONCE = 4  # namespaces worked on at the same time; each takes a few short-lived processes
RESERVED_DESCRIPTORS = 64
"""A dozen for each of these, and for files, proxies and commands; pods get the others."""

_RESOURCES = "raise the limits of open files and processes (ulimit -Hn, -Hu); the agent tries again"
_log = get_logger("agent")


class Agent:
    """Brings pods into the mesh. ``state`` must be locked by the caller."""

    def __init__(self, state: StateDirectory, uds: Path, documents: PodDocuments | None) -> None:
        self.members: dict[str, Member] = {}
        self.held: set[str] = set()
        """Uids that a command took out although their documents are there."""
        self.proxies = Proxies(uds, introduce=self._introduce, changed=self.wake)
        self._state = state
        self._documents = documents
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # a removal is not to fall between a new proxy's list of pods and its end
        self._problems: set[str] = set()
        self._documented: Set[str] = frozenset()

    def documented(self, uid: str) -> bool:
        """Whether a document asked for this pod when the agent last looked."""
        return uid in self._documented

    def wake(self) -> None:
        """Let the loop look again."""
        self._wake.set()

    async def open(self) -> None:
        """Take up the state of an earlier agent and listen for proxies. Raises :class:`ConfigError`."""
        state = self._state.load()
        self.members = {one.pod.uid: Member(one) for one in state.enrolments}
        self.held = set(state.held)
        if self._documents is not None:
            self._documents.remember(state.enrolments)
        self._state.save(state.enrolments, state.held)  # also shows that it can be written
        await self._look_around()
        # Before anybody listens, or the first proxy would let go of pods that it is not told of.
        for member in list(self.members.values()):
            with contextlib.suppress(EnrolmentError, OSError):  # tried again, and reported, by the loop
                await self._opened(member)
        self.proxies.open()

    async def run(self) -> None:
        """Bring everybody where they should be, again and again, until cancelled."""
        while True:
            self._wake.clear()
            doubtful = await self._look_around()
            await self._settle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONFIRM_SECONDS if doubtful else RETRY_SECONDS):
                    await self._wake.wait()

    async def close(self) -> None:
        """Let go of everything but the rules."""
        await self.proxies.close()
        for member in self.members.values():
            member.close()

    def save(self) -> None:
        """Write down who is enrolled and what was done."""
        self._state.save((member.enrolment for member in self.members.values()), self.held)

    # -- what is wanted --------------------------------------------------------------------------------------

    async def _look_around(self) -> bool:
        """Compare with the documents; whether another look is needed soon."""
        if self._documents is None:
            return False
        wanted = await asyncio.to_thread(self._documents.look, asyncio.get_running_loop().time())
        self._report(wanted)
        self._documented = wanted.pods.keys()
        if wanted.certain:
            self.held &= wanted.pods.keys()
        for uid, member in self.members.items():
            if member.enrolment.origin != "document" or member.enrolment.leaving:
                continue
            document = wanted.pods.get(uid)
            now = member.enrolment
            if document is None or (document.pod, document.netns) != (now.pod, now.netns):
                member.leave()
            elif document.options != now.options:
                member.want(document.options)
        for uid, document in wanted.pods.items():
            if uid not in self.members and uid not in self.held:
                self.members[uid] = Member(document)
        return self._documents.doubtful

    def _report(self, wanted: Wanted) -> None:
        problems = {str(problem) for problem in wanted.problems}
        for problem in sorted(problems - self._problems):
            _log.warning("configuration problem", problem=problem)
        self._problems = problems

    # -- bringing everybody there ----------------------------------------------------------------------------

    async def _settle(self) -> None:
        workers = asyncio.Semaphore(AT_ONCE)

        async def one(member: Member) -> None:
            async with workers:
                await self._attend(member)

        async with asyncio.TaskGroup() as group:
            for member in list(self.members.values()):
                group.create_task(one(member))

    async def _attend(self, member: Member) -> None:
        """Do what is missing for one pod; a failure is kept and reported, and tried again later."""
        earlier, member.failure = member.failure, await self._attempt(member)
        failure = member.failure
        if failure is not None and str(failure) != str(earlier):
            say = _log.info if failure.code == "zds_no_proxy" else _log.warning
            pod, netns = str(member.enrolment.pod), str(member.enrolment.netns)
            say("pod is waiting", pod=pod, netns=netns, error=str(failure), hint=failure.hint)
        for watcher in list(member.watchers):
            watcher()

    async def _attempt(self, member: Member) -> ZtunError | None:
        try:
            if member.enrolment.leaving:
                await self._withdraw(member)
            else:
                await self._bring(member)
        except (ConfigError, EnrolmentError, ZdsError) as error:
            return error
        except OSError as error:  # no descriptor or process left, for instance
            return EnrolmentError("system_refuses", f"the system refuses: {error.strerror}", hint=_RESOURCES)
        return None

    async def _bring(self, member: Member) -> None:
        if not await self._opened(member):
            return
        namespace = member.namespace
        assert namespace is not None
        refused: ZdsError | None = None
        if member.taken_by is None or member.taken_by is not self.proxies.latest:
            try:
                member.taken_by = None
                member.taken_by = await self.proxies.add(_add(member.enrolment), namespace.descriptor)
            except ZdsError as error:
                refused = error
        done = member.enrolment.captured and member.verified
        if not done and (refused is None or member.enrolment.record is not None):
            await self._capture(member, namespace)
        if refused is not None:
            raise refused

    async def _opened(self, member: Member) -> bool:
        """Open the namespace, or see that it is still the one; False when the pod has gone with it."""
        enrolment = member.enrolment
        if member.namespace is not None:
            if member.namespace.is_at(enrolment.netns):
                return True
            await self._forget(member)
            return False
        try:
            namespace = PodNamespace.open(enrolment.netns)
        except EnrolmentError as error:
            if error.code == "no_namespace" and enrolment.identity:
                await self._forget(member)
                return False
            raise
        with contextlib.ExitStack() as unused:
            unused.callback(namespace.close)
            identity = namespace.identity()
            if enrolment.identity not in ("", identity):
                await self._forget(member)  # another one has its name now
                return False
            check_free(self.members, namespace, enrolment)
            if not self._has_room():
                raise EnrolmentError("too_many_pods", "no descriptor is left for this pod", hint=_RESOURCES)
            unused.pop_all()
        member.namespace = namespace
        if enrolment.identity != identity:
            member.found(identity)
            self.save()
        return True

    def _has_room(self) -> bool:
        """Whether one more namespace may be held, whatever else is open just now: or pods would come in by luck."""
        held = sum(member.namespace is not None for member in self.members.values())
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return RESERVED_DESCRIPTORS + (held + 1) * DESCRIPTORS_EACH <= limit

    async def _capture(self, member: Member, namespace: PodNamespace) -> None:
        """Load the rules, with the state written before and after."""
        options, earlier = member.enrolment.options, member.enrolment.record
        plan = await plan_capture(namespace, earlier=earlier)
        record = plan.record
        member.recorded(record)
        self.save()
        try:
            loaded = await apply_capture(namespace, plan, options)
        except EnrolmentError:
            if not record.loaded:  # whoever was captured already stays so: better refused than in plaintext
                await undo_capture(namespace, record)
                member.recorded(None)
                self.save()
            raise
        member.recorded(loaded)
        member.verified = True
        self.save()
        pod, netns, uid = str(member.enrolment.pod), str(member.enrolment.netns), member.enrolment.pod.uid
        if record.loaded:
            _log.debug("rules loaded again", pod=pod, netns=netns, uid=uid)
        else:
            _log.info("pod enrolled", pod=pod, netns=netns, uid=uid)

    # -- and out again ---------------------------------------------------------------------------------------

    async def _withdraw(self, member: Member) -> None:
        """Unload the rules, then tell the proxies."""
        self.save()  # that it leaves, so that an agent that is killed here goes on with it
        enrolment = member.enrolment
        if enrolment.record is not None and await self._opened(member):
            assert member.namespace is not None
            await undo_capture(member.namespace, enrolment.record)
        if not member.gone:
            await self._remove(member)
            _log.info(
                "pod withdrawn", pod=str(enrolment.pod), netns=str(enrolment.netns), uid=enrolment.pod.uid
            )
            self.wake()  # its document may want it somewhere else

    async def _forget(self, member: Member) -> None:
        """The namespace is gone, or no longer to be found; its rules end with it."""
        enrolment = member.enrolment
        await self._remove(member)
        _log.info("pod is gone", pod=str(enrolment.pod), netns=str(enrolment.netns), uid=enrolment.pod.uid)
        self.wake()

    async def _remove(self, member: Member) -> None:
        async with self._turn:
            await self.proxies.delete(member.enrolment.pod.uid)
            del self.members[member.enrolment.pod.uid]
        member.gone = True
        member.close()
        self.save()

    # -- proxies ---------------------------------------------------------------------------------------------

    async def _introduce(self, conversation: Conversation) -> None:
        """Tell a new proxy of everybody. One pod that it refuses does not keep the others from it."""
        async with self._turn:
            for member in list(self.members.values()):
                enrolment = member.enrolment
                if member.namespace is not None:
                    ack = await conversation.request(_add(enrolment), member.namespace.descriptor)
                    if not ack.error:
                        member.taken_by = conversation
                elif enrolment.identity:
                    ack = await conversation.request(KeepWorkload(enrolment.pod.uid))
                else:
                    continue
                if ack.error:
                    _log.warning("pod refused by the proxy", pod=str(enrolment.pod), reason=ack.error)
            ack = await conversation.request(SnapshotSent())
            if ack.error:
                raise ZdsError("zds_refused", f"the proxy refused the end of the snapshot: {ack.error}")


def _add(enrolment: Enrolment) -> AddWorkload:
    pod = enrolment.pod
    return AddWorkload(pod.uid, pod.name, pod.namespace, pod.service_account)
