"""Who is enrolled, and what was done for it, on disk: an agent that starts again goes on where the last one was.

One JSON file, replaced as a whole. It is written before a namespace is touched and after, so whatever was done is
found in it. It outlives the agent but not the machine: after a boot every namespace is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from ztun.agent.pod_namespace import boot_id
from ztun.agent.record import CaptureRecord, digest
from ztun.agent.rules import CaptureOptions
from ztun.errors import ConfigError

FILE = "enrolments.json"
LOCK = "lock"
MAX_STATE_BYTES = 64 * 1024 * 1024  # ten thousand pods are a tenth of it
MAX_NAME = 253  # Kubernetes' limit

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Which pod a namespace is, as the proxy is told."""

    uid: str
    name: str
    namespace: str
    service_account: str = "default"

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A pod that is in the mesh, on its way in or on its way out: what is wanted, and what was done."""

    pod: PodIdentity
    netns: Path
    origin: Literal["document", "command"]
    options: CaptureOptions = field(default_factory=CaptureOptions)
    leaving: bool = False
    identity: str = ""
    """Of the network namespace; empty until it was opened."""
    record: CaptureRecord | None = None
    """What was, or was about to be, done to it."""

    @property
    def captured(self) -> bool:
        """Whether the rules that are wanted are in force."""
        return self.record is not None and self.record.loaded == digest(self.options)


@dataclass(frozen=True, slots=True)
class State:
    """Everything an agent has to know of the time before it was started."""

    enrolments: tuple[Enrolment, ...] = ()
    held: frozenset[str] = frozenset()
    """Uids of pods that a command took out although their documents are there."""
    boot: str = ""
    version: Literal[1] = 1


@dataclass(slots=True)
class StateDirectory:
    """The directory with the state; one process at a time may use it."""

    path: Path
    _lock: int = field(default=-1)

    def lock(self) -> None:
        """Take it; raises :class:`ConfigError` ``state_in_use`` or ``state_unwritable``."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                "state_unwritable",
                f"{self.path}: {error.strerror}",
                hint="name a directory that this user may write to with --state",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.unlock()
            raise ConfigError(
                "state_in_use",
                f"another process uses the state in {self.path}",
                hint="an agent is running; talk to it with --control, or give this one another --state",
            ) from error

    def unlock(self) -> None:
        """Leave it to others."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> State:
        """What was saved since the machine was started; raises :class:`ConfigError` ``state_unreadable``."""
        file = self.path / FILE
        try:
            if file.stat().st_size > MAX_STATE_BYTES:
                raise ValueError(f"more than {MAX_STATE_BYTES} bytes")
            state = _STATE.validate_json(file.read_bytes())
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, ValidationError) as error:
            raise ConfigError(
                "state_unreadable",
                f"{file}: {str(error).splitlines()[0]}",
                hint="it says which namespaces are captured; if it is lost, remove it, enrol the pods again",
            ) from error
        return state if state.boot == boot_id() else State()

    def save(self, enrolments: Iterable[Enrolment], held: Iterable[str] = ()) -> None:
        """Replace what is saved; raises :class:`ConfigError` ``state_unwritable``, with the last state in place."""
        state = State(tuple(enrolments), frozenset(held), boot_id())
        draft = self.path / f"{FILE}.new"
        try:
            draft.write_bytes(_STATE.dump_json(state, indent=1))
            draft.replace(self.path / FILE)
        except OSError as error:
            raise ConfigError(
                "state_unwritable",
                f"the state cannot be written to {self.path}: {error.strerror}",
                hint="nothing is done to a namespace before it is written down; make room, or see who may write",
            ) from error


_STATE = TypeAdapter(State)


def check_name(text: str, what: str) -> str:
    """A name of a Kubernetes object; raises :class:`ConfigError` ``bad_name``."""
    if not _NAME.fullmatch(text):
        raise ConfigError(
            "bad_name",
            f"{what} {text!r} is not a name",
            hint=f"lower-case letters, digits, '-' and '.', at most {MAX_NAME}",
        )
    return text


def parse_pod(text: str) -> tuple[str, str]:
    """Namespace and name of ``NAMESPACE/NAME``; raises :class:`ConfigError`."""
    namespace, slash, name = text.partition("/")
    if not slash:
        raise ConfigError(
            "bad_pod", f"--pod {text!r}: expected NAMESPACE/NAME", hint="for example default/web"
        )
    return check_name(namespace, "the namespace"), check_name(name, "the pod")
