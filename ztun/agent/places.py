"""Where things are unless the command line says otherwise."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE = Path("/run/ztun")  # gone after a boot, as the namespaces are
DEFAULT_CONTROL = DEFAULT_STATE / "control.sock"
DEFAULT_UDS = Path("/var/run/ztunnel/ztunnel.sock")  # where ztunnel looks for istio-cni
