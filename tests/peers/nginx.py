"""nginx as the HTTP application behind the tunnels: one worker, endless keep-alive, a body of six bytes."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.peers.process import Process

Address = tuple[str, int]

_CONFIGURATION = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
{listen}
        location / {{ return 200 "hello\\n"; }}
    }}
}}
"""


class NginxProcess(Process):
    """Debian's nginx, answering ``hello`` on the given addresses.

    Raises ``FileNotFoundError`` when nginx is not installed.
    """

    def __init__(self, listen: Sequence[Address], directory: Path) -> None:
        binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if binary is None:
            raise FileNotFoundError("nginx is not installed (Debian's package nginx-light)")
        lines = "\n".join(f"        listen {host}:{port} backlog=4096;" for host, port in listen)
        configuration = directory / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(directory=directory, listen=lines))
        self._probe = listen[0]
        argv: list[str | Path] = [binary, "-c", configuration, "-p", directory, "-e", "stderr"]
        super().__init__("nginx", argv, directory / "nginx.log", ready=self._accepts)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(self._probe, timeout=1).close()
        except OSError:
            return False
        return True
