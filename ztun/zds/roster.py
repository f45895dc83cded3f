"""Which pods a node proxy serves, as its agents say: events in, actions out, no socket and no clock.

1. On each connection the agent names everybody (Add, Keep), then says so (SnapshotSent): whoever was not named goes.
2. Every request is answered once. A pod that cannot be started is answered with the reason and stays *pending*.
3. An agent that says something impossible is answered and the proxy gives up: it is no longer known who is wanted.
   An agent that cannot be understood is answered and hung up on; what is served stays.

Source: ztunnel's state manager (src/inpod/statemanager.rs), whose words the answers use.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeAlias, TypeVar

from ztun.errors import ZdsError
from ztun.zds.messages import AddWorkload, DelWorkload, KeepWorkload, Request

Place: TypeAlias = tuple[int, int]
"""Device and inode of a network namespace."""


class HasKey(Protocol):
    """A network namespace, open."""

    @property
    def key(self) -> Place:
        """What tells it from the others that are open."""


N = TypeVar("N", bound=HasKey)


class Phase(Enum):
    """Where the conversation with the agent is."""

    DISCONNECTED = "disconnected"
    SNAPSHOT = "snapshot"
    """The agent names everybody."""
    FOLLOWING = "following"
    """The agent tells of changes."""


@dataclass(frozen=True, slots=True)
class Start(Generic[N]):
    """Serve a pod in a namespace, which is handed over; tell ``started`` or ``not_started``."""

    pod: AddWorkload
    namespace: N


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop serving a pod at once."""

    uid: str


@dataclass(frozen=True, slots=True)
class Release(Generic[N]):
    """Close a namespace that nobody needs."""

    namespace: N


@dataclass(frozen=True, slots=True)
class Answer:
    """Acknowledge the request; with an error if there is one."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the connection, and connect again."""

    reason: ZdsError


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the process in order, with failure."""

    reason: ZdsError


Action: TypeAlias = Start[N] | Stop | Release[N] | Answer | HangUp | GiveUp


class Roster(Generic[N]):
    """The pods that are served and those that are to be. Each method is an event and gives the actions it takes."""

    def __init__(self) -> None:
        self.phase = Phase.DISCONNECTED
        self._serving: dict[str, tuple[AddWorkload, Place]] = {}
        self._pending: dict[str, tuple[AddWorkload, N]] = {}
        self._named: set[str] = set()
        self._asked = ""

    @property
    def ready(self) -> bool:
        """Whether everything the agent wants is served."""
        return self.phase is Phase.FOLLOWING and not self._pending

    @property
    def pending(self) -> tuple[AddWorkload, ...]:
        """The pods that could not be started yet."""
        return tuple(pod for pod, _ in self._pending.values())

    # -- the connection --------------------------------------------------------------------------------------

    def connected(self) -> list[Action[N]]:
        """An agent listens: it will name everybody again, those that are pending too."""
        self.phase = Phase.SNAPSHOT
        self._named = set()
        return self._forget_pending()

    def disconnected(self) -> None:
        """The agent is gone; who is served stays."""
        self.phase = Phase.DISCONNECTED
        self._asked = ""

    def not_understood(self, error: ZdsError) -> list[Action[N]]:
        """What came is no request, or came with descriptors that do not belong to it."""
        return [Answer(str(error)), HangUp(error)]

    def impossible(self, error: ZdsError) -> list[Action[N]]:
        """What came must not come now."""
        return [Answer(str(error)), GiveUp(error)]

    def closed(self) -> list[Action[N]]:
        """The proxy ends."""
        self.disconnected()
        return self._forget_pending()

    # -- requests --------------------------------------------------------------------------------------------

    def asked(self, request: Request) -> list[Action[N]]:
        """A request without a namespace; see ``added`` for the other one."""
        if isinstance(request, KeepWorkload):
            if self.phase is not Phase.SNAPSHOT:
                return self.impossible(ZdsError("zds_late_keep", "pod received keep after snapshot"))
            self._named.add(request.uid)
            return [Answer()]
        if isinstance(request, DelWorkload):
            return [*self._removed(request.uid), Answer()]
        if self.phase is not Phase.SNAPSHOT:
            return self.impossible(ZdsError("zds_second_snapshot", "pod snapshot received already"))
        self.phase = Phase.FOLLOWING
        unnamed = [uid for uid in (*self._serving, *self._pending) if uid not in self._named]
        return [action for uid in unnamed for action in self._removed(uid)] + [Answer()]

    def added(self, pod: AddWorkload, namespace: N) -> list[Action[N]]:
        """A pod and its namespace, which belongs to the roster from now on."""
        actions = self._mentioned(pod.uid)
        if self._serving.get(pod.uid) == (pod, namespace.key):
            return [*actions, Release(namespace), Answer()]
        if self._serving.pop(pod.uid, None) is not None:
            actions.append(Stop(pod.uid))
        self._asked = pod.uid
        return [*actions, Start(pod, namespace)]

    def unusable(self, pod: AddWorkload, error: str) -> list[Action[N]]:
        """A pod whose descriptor is no network namespace; trying again would not help."""
        return [*self._mentioned(pod.uid), Answer(error)]

    # -- what became of them ---------------------------------------------------------------------------------

    def started(self, pod: AddWorkload, namespace: N) -> list[Action[N]]:
        """A pod is served."""
        self._pending.pop(pod.uid, None)
        self._serving[pod.uid] = (pod, namespace.key)
        return self._answered(pod.uid, "")

    def not_started(self, pod: AddWorkload, namespace: N, reason: str) -> list[Action[N]]:
        """A pod cannot be served now; its namespace is back with the roster."""
        self._pending[pod.uid] = (pod, namespace)
        return self._answered(pod.uid, f"failure to start proxy : {reason}")

    def retry(self) -> list[Action[N]]:
        """Try the pending pods again, as long as an agent is there."""
        if self.phase is Phase.DISCONNECTED:
            return []
        return [Start(pod, namespace) for pod, namespace in self._pending.values()]

    # -- inside ----------------------------------------------------------------------------------------------

    def _mentioned(self, uid: str) -> list[Action[N]]:
        if self.phase is Phase.SNAPSHOT:
            self._named.add(uid)
        earlier = self._pending.pop(uid, None)
        return [Release(earlier[1])] if earlier is not None else []

    def _removed(self, uid: str) -> list[Action[N]]:
        """Before the end of the snapshot only what is known of it changes; the pod itself goes with the others."""
        actions: list[Action[N]] = []
        self._named.discard(uid)
        earlier = self._pending.pop(uid, None)
        if earlier is not None:
            actions.append(Release(earlier[1]))
        if self.phase is Phase.FOLLOWING and self._serving.pop(uid, None) is not None:
            actions.append(Stop(uid))
        return actions

    def _answered(self, uid: str, error: str) -> list[Action[N]]:
        if self._asked != uid:
            return []  # it was a retry
        self._asked = ""
        return [Answer(error)]

    def _forget_pending(self) -> list[Action[N]]:
        actions: list[Action[N]] = [Release(namespace) for _, namespace in self._pending.values()]
        self._pending.clear()
        return actions
