"""Settings of the OpenSSL inside the ``cryptography`` wheel that its binding has no call for.

OpenSSL reads them from a configuration file when it is initialised, which is when ``cryptography`` is imported. So this
module is the first that imports it, on behalf of the whole package. Whoever names a configuration of their own in
``OPENSSL_CONF`` keeps it; ours is in force during that import only and reaches neither the interpreter's own OpenSSL
nor child processes.

What it says, in ``openssl.cnf``: a server sends no session tickets. A resumed session would skip the verification of
the peer, and tickets that nobody may use are bytes and work for nothing.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("openssl.cnf")
_VARIABLE = "OPENSSL_CONF"


def _initialise() -> None:
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = str(CONFIGURATION)
    try:
        importlib.import_module("cryptography.hazmat.bindings._rust")
    finally:
        del os.environ[_VARIABLE]


_initialise()
