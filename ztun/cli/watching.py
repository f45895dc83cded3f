"""``--watch``: the answer of a list command again whenever it has changed, until it is interrupted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ztun.cli.listing import Listing

INTERVAL_SECONDS = 1.0  # the proxy's own rhythm: it looks at its connections once a second


def watch(ask: Callable[[], Listing], show: Callable[[Listing], None]) -> NoReturn:
    """Ask and show without end. A proxy that does not answer for a while, as in an upgrade, is waited for.

    The first question must be answered: raises what ``ask`` raises.
    """
    shown = ask()
    show(shown)
    complained = False
    while True:
        sys.stdout.flush()
        time.sleep(INTERVAL_SECONDS)
        found = _again(ask, complained=complained)
        complained = found is None
        if found is not None and found != shown:
            show(found)
            shown = found


def _again(ask: Callable[[], Listing], *, complained: bool) -> Listing | None:
    from ztun.cli.outcome import complain
    from ztun.errors import ConnectError

    try:
        return ask()
    except ConnectError as error:
        if not complained:
            complain(str(error), "asked again until it answers")
        return None
