"""Whose containers, networks and volumes those on the daemon are, and the end of those whose run was killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import docker
from docker.errors import APIError
from docker.models.containers import Container

OWNER_LABEL = "ztun.e2e.owner"
PROJECT_PREFIX = "ztun-e2e-"  # begins the name of a compose project, the owner follows
_COMPOSE_LABEL = "com.docker.compose.project"


def _owner(pid: int) -> str:
    """The process and when it was started, in ticks since boot (proc_pid_stat(5)): its number alone comes again.

    Raises ``OSError`` when there is no such process.
    """
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}-{ticks}"


OWNER = _owner(os.getpid())
"""The label of what this process makes."""


def remove_left_overs() -> None:
    """Remove what runs have left that were killed: nobody else would."""
    client = docker.from_env()
    try:
        for kind in (client.containers, client.networks, client.volumes):
            found = kind.list(all=True) if kind is client.containers else kind.list()
            for thing in found:
                labels = thing.labels if isinstance(thing, Container) else thing.attrs["Labels"] or {}
                if _is_left_over(labels):
                    # What does not go, or has gone meanwhile, is no reason to test nothing.
                    with contextlib.suppress(APIError):
                        thing.remove(**({"force": True, "v": True} if isinstance(thing, Container) else {}))
    finally:
        client.close()


def _is_left_over(labels: Mapping[str, str]) -> bool:
    owner = labels.get(OWNER_LABEL) or labels.get(_COMPOSE_LABEL, "").partition(PROJECT_PREFIX)[2]
    pid = owner.partition("-")[0]
    if not pid.isdigit():
        return False
    try:
        return _owner(int(pid)) != owner
    except OSError:
        return True
