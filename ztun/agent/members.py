"""A pod as the running agent sees it: what is wanted for it, where it stands, and who waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ztun.agent.conversation import Conversation
from ztun.agent.enrolments import Enrolment
from ztun.agent.pod_namespace import PodNamespace
from ztun.agent.record import CaptureRecord
from ztun.agent.rules import CaptureOptions
from ztun.errors import EnrolmentError, ZtunError


@dataclass(slots=True, eq=False)
class Member:
    """A pod that is in the mesh, on its way in or out.

    The enrolment is changed by those who want something (its options, that it leaves) and by the agent's loop (its
    identity, its record), at any time; so each changes its own fields of the current one, by these methods only.
    """

    enrolment: Enrolment
    namespace: PodNamespace | None = None
    taken_by: Conversation | None = None
    """The proxy that has acknowledged it."""
    verified: bool = False
    """Whether its rules were loaded, or loaded again, since the agent was started."""
    failure: ZtunError | None = None
    """Why it is not where it should be yet."""
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after each attempt."""
    gone: bool = False

    @property
    def settled(self) -> bool:
        """Whether it is in the mesh and nothing is left to do."""
        return (
            self.enrolment.captured
            and not self.enrolment.leaving
            and self.failure is None
            and self.taken_by is not None
            and not self.taken_by.closed.is_set()
        )

    def is_at(self, path: Path) -> bool:
        """Whether this path is that of its namespace, or another one to the same."""
        here = self.enrolment.netns == path
        return here or (self.namespace is not None and self.namespace.is_at(path))

    def want(self, options: CaptureOptions) -> None:
        """Other rules are wanted."""
        self.enrolment = replace(self.enrolment, options=options)

    def leave(self) -> None:
        """It is to leave the mesh."""
        self.enrolment = replace(self.enrolment, leaving=True)

    def stay(self) -> None:
        """It is not to leave after all."""
        self.enrolment = replace(self.enrolment, leaving=False)

    def found(self, identity: str) -> None:
        """Its namespace was opened."""
        self.enrolment = replace(self.enrolment, identity=identity)

    def recorded(self, record: CaptureRecord | None) -> None:
        """Something was, or is about to be, done to its namespace."""
        self.enrolment = replace(self.enrolment, record=record)

    def close(self) -> None:
        """Let go of its namespace."""
        if self.namespace is not None:
            self.namespace.close()
            self.namespace = None


def members_in(members: Mapping[str, Member], namespace: PodNamespace) -> Iterator[Member]:
    """Everybody whose namespace this is."""
    for member in members.values():
        if member.namespace is not None and member.namespace.key == namespace.key:
            yield member


def check_free(members: Mapping[str, Member], namespace: PodNamespace, enrolment: Enrolment) -> None:
    """Refuse a namespace that must not be captured; raises :class:`EnrolmentError`."""
    if namespace.is_own:
        raise EnrolmentError(
            "own_namespace",
            f"{enrolment.netns} is the network namespace of the agent itself",
            hint="for a workload that shares it with its proxy: ztun enroll --self, without an agent",
        )
    for other in members_in(members, namespace):
        if other.enrolment.pod.uid != enrolment.pod.uid:
            raise EnrolmentError(
                "already_enrolled",
                f"{enrolment.netns} is enrolled as {other.enrolment.pod}",
                hint=f"ztun unenroll {other.enrolment.netns}",
            )
