"""What a lab has made of this machine's own, on disk: whoever starts the next lab removes what a killed one left.

A lab has a directory ``PID`` (or ``PID-2`` ...) with a lock that ends with its process, and a list of its network
namespaces, written before they are made. A directory whose lock can be had belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from ztun.errors import ConfigError
from ztun.lab.process import LabError

LABS = Path("/run/ztun/lab")
RESOLVERS = Path(
    "/etc/netns"
)  # ``ip netns exec`` mounts the files of a namespace's directory over those of /etc
IP_SECONDS = 30.0  # a batch takes milliseconds; this much only when the machine is stuck

_LOCK, _NAMES, _TURN = "lock", "namespaces", ".turn"


class Reservation:
    """A directory of one lab. ``prefix`` begins the names of its network namespaces."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._names: list[str] = []

    @property
    def prefix(self) -> str:
        """Unique on this machine, and it tells the process."""
        return f"ztun-{self.path.name}"

    def add(self, names: Iterable[str]) -> None:
        """Write down namespaces that are about to be made."""
        self._names += names
        self._write()

    def remove(self, names: Iterable[str]) -> None:
        """Remove namespaces now, and what belongs to them."""
        gone = set(names)
        remove_namespaces(sorted(gone))
        self._names = [name for name in self._names if name not in gone]
        self._write()

    def close(self) -> None:
        """Remove everything."""
        remove_namespaces(self._names)
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _write(self) -> None:
        draft = self.path / f"{_NAMES}.new"
        draft.write_text("".join(f"{name}\n" for name in self._names))
        draft.replace(self.path / _NAMES)


@contextlib.contextmanager
def reserve(labs: Path = LABS) -> Iterator[Reservation]:
    """A directory of this lab's own, after left-overs were collected; removed at the end of the context.

    Raises :class:`ConfigError` ``lab_unwritable``.
    """
    try:
        with _turn(labs):
            collect(labs)
            reservation = _make(labs)
    except OSError as error:
        raise ConfigError(
            "lab_unwritable", f"{labs}: {error.strerror}", hint="the netns fabric needs root; or use loopback"
        ) from error
    try:
        yield reservation
    finally:
        reservation.close()


def collect(labs: Path) -> list[str]:
    """Remove what labs have left whose process is gone; gives the names of the namespaces."""
    found: list[str] = []
    for path in sorted(labs.iterdir()):
        if not path.is_dir():
            continue
        lock = _locked(path / _LOCK)
        if lock is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            names = (path / _NAMES).read_text().split()
            remove_namespaces(names)
            found += names
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
    return found


def remove_namespaces(names: Iterable[str]) -> None:
    """Remove network namespaces by name, with their files in ``/etc/netns``; who is gone already is passed over."""
    names = list(names)
    if not names:
        return
    text = "".join(f"netns delete {name}\n" for name in names)
    subprocess.run(
        ("ip", "-force", "-batch", "-"),
        input=text,
        text=True,
        check=False,
        stderr=subprocess.DEVNULL,
        timeout=IP_SECONDS,
    )
    for name in names:
        shutil.rmtree(RESOLVERS / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # others may have files there
        RESOLVERS.rmdir()


def run_batch(lines: Iterable[str], *, namespace: str = "") -> None:
    """Run lines of ``ip``, all of them or :class:`LabError` ``lab_network`` with what it complained about."""
    text = "".join(f"{line}\n" for line in lines)
    where = ("-n", namespace) if namespace else ()
    try:
        done = subprocess.run(
            ("ip", *where, "-batch", "-"), input=text, text=True, capture_output=True, timeout=IP_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError("lab_network", f"ip: {error}") from error
    if done.returncode != 0:
        place = f" in {namespace}" if namespace else ""
        raise LabError("lab_network", f"ip{place}: {done.stderr.strip()}\n{text}".rstrip())


@contextlib.contextmanager
def _turn(labs: Path) -> Iterator[None]:
    """One process at a time collects and reserves."""
    labs.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(labs / _TURN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _make(labs: Path) -> Reservation:
    number = 1
    while True:
        path = labs / (str(os.getpid()) if number == 1 else f"{os.getpid()}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        lock = _locked(path / _LOCK)
        assert lock is not None
        return Reservation(path, lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock; None while somebody else does. A lock that is not there is had."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
