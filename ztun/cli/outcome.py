"""How a command ends: what is printed for an error, and the exit code.

0 is success, 1 a failure, 2 a command line that cannot be used, 130 an interrupt (128 + SIGINT).
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer

from certs.errors import CertError
from ztun.errors import ZtunError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130

_HINTS = {
    errno.EADDRINUSE: "another process listens there; stop it or choose another port",
    errno.EADDRNOTAVAIL: "this machine does not have that address",
    errno.EACCES: "this user may not do that; ports below 1024 need privileges",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def complain(message: str, hint: str = "") -> None:
    """Print one sentence, and a second line with what to do about it, to standard error."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def run(app: typer.Typer, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code; an expected error is a sentence and a hint, no traceback."""
    try:
        app(args=arguments, prog_name=program)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILURE
    except (ZtunError, CertError) as error:
        complain(str(error), error.hint)
        return EXIT_FAILURE
    except OSError as error:
        complain(error.strerror or str(error), _HINTS.get(error.errno or 0, ""))
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
