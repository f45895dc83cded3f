"""The tools that an agent runs, arranged so that it is killed over one of them, or that one fails or takes long."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

_SCRIPT = """#!/bin/sh
# Behaves as {real}, but for the first time that its arguments are the given ones.
if [ "$*" = "{arguments}" ] && mkdir {directory}/done 2>/dev/null; then
    case {how} in
        before) kill -KILL $PPID ;;
        after) {real} "$@"; kill -KILL $PPID ;;
        fails) echo "no such luck" >&2 ;;
        waits) read word < {directory}/gate; exec {real} "$@" ;;
    esac
    exit 1
fi
exec {real} "$@"
"""


def arranged(
    directory: Path, command: str, how: Literal["before", "after", "fails", "waits"]
) -> dict[str, str]:
    """The environment for an agent: ``command`` (``nft -f -``) is run once as arranged, then as always.

    The agent is killed before or after it, it fails, or it waits for :func:`let_go`.
    """
    directory.mkdir()
    os.mkfifo(directory / "gate")
    program, _, arguments = command.partition(" ")
    real = shutil.which(program)
    assert real is not None
    path = directory / program
    path.write_text(_SCRIPT.format(real=real, arguments=arguments, directory=directory, how=how))
    path.chmod(0o755)
    return {"PATH": f"{directory}:/usr/sbin:/usr/bin:/sbin:/bin"}


def let_go(directory: Path) -> None:
    """Have the command that waits go on."""
    (directory / "gate").write_text("go\n")


def was_run(directory: Path) -> bool:
    """Whether it has happened."""
    return (directory / "done").exists()
