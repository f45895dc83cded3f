"""A pod's network namespace as the agent holds it: open, told apart from all others, with commands run inside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ztun.errors import EnrolmentError
from ztun.net.namespaces import NetworkNamespace

COMMAND_SECONDS = 10.0  # nft and ip take milliseconds; this much only when the machine is stuck
SO_NETNS_COOKIE = 71  # linux/socket.h, since 5.14: never used again while the machine is up

_NEEDS_ROOT = "changing a network namespace needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class PodNamespace(NetworkNamespace):
    """A pod's network namespace; ``path`` is where the agent knows it to be."""

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this very namespace; it is the one as long as this holds it open."""
        try:
            status = path.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.key

    def identity(self) -> str:
        """What tells this namespace from every other of this machine, also after it is gone.

        On kernels without namespace cookies (before 5.14) a number that may come again. Raises
        :class:`EnrolmentError` ``namespace_forbidden``.
        """

        def cookie() -> str:
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                value = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
                return f"cookie-{int.from_bytes(value, 'little')}"
            return f"inode-{self.key[0]}-{self.key[1]}"

        try:
            return f"{boot_id()}/{self.run(cookie)}"
        except OSError as error:
            raise EnrolmentError(
                "namespace_forbidden", f"{self.path} cannot be entered: {error.strerror}", hint=_NEEDS_ROOT
            ) from error

    async def command(self, *argv: str, text: str = "") -> str:
        """Run a program inside and give what it printed.

        Raises :class:`EnrolmentError` ``command_missing``, ``command_failed`` or ``command_stuck``. Cancelling
        waits for its end.
        """
        # A copy, for this namespace may be closed while the command runs.
        descriptor = os.dup(self.descriptor)
        work = asyncio.ensure_future(asyncio.to_thread(_run, argv, text, descriptor, self.is_own, self.path))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # whoever comes after an agent that ends is not to meet its commands
            if not work.cancelled():
                work.exception()
            raise


def _run(argv: Sequence[str], text: str, descriptor: int, own: bool, path: Path) -> str:
    whole = argv if own else ("nsenter", f"--net=/proc/self/fd/{descriptor}", "--", *argv)
    try:
        done = subprocess.run(
            whole,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            pass_fds=(descriptor,),
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise EnrolmentError(
            "command_missing",
            f"the command {whole[0]} is not installed",
            hint="capture needs iproute2, nftables and util-linux",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnrolmentError(
            "command_stuck", f"{' '.join(argv)} did not end within {COMMAND_SECONDS:.0f} s"
        ) from error
    finally:
        os.close(descriptor)
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise EnrolmentError("command_failed", f"{' '.join(argv)} in {path}: {said}", hint=_hint(said))
    return done.stdout


def boot_id() -> str:
    """What changes when the machine starts again, and every namespace is gone."""
    return _BOOT.read_text().strip()


def _hint(said: str) -> str:
    if "not permitted" in said or "ermission denied" in said:
        return _NEEDS_ROOT
    if "exec" in said and "No such file" in said:
        return "capture needs iproute2, nftables and util-linux"
    return ""
