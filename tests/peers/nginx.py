"""nginx: the HTTP application behind the tunnels, and ``stream`` with mTLS as one more thing to compare."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.peers.credentials import Credentials
from tests.peers.process import Process
from tests.peers.traffic import Address

STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

_MAIN = """\
{modules}daemon off;
master_process off;
pid {directory}/{name}.pid;
error_log stderr error;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
"""
_HTTP = """\
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
_STREAM = """\
stream {{
    log_format line "$time_iso8601 $remote_addr $upstream_addr $bytes_sent $bytes_received $session_time";
    access_log {directory}/{name}.access line;
    tcp_nodelay on;
    proxy_timeout 1h;
{servers}}}
"""
_ENTRY = """\
    server {{
        listen {listen} backlog=4096;
        proxy_pass {target};
        proxy_ssl on;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_certificate {own.chain};
        proxy_ssl_certificate_key {own.key};
        proxy_ssl_trusted_certificate {own.roots};
        proxy_ssl_session_reuse off;
        proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    }}
"""
_EXIT = """\
    server {{
        listen {listen} ssl backlog=4096;
        proxy_pass {target};
        ssl_protocols TLSv1.3;
        ssl_certificate {own.chain};
        ssl_certificate_key {own.key};
        ssl_client_certificate {own.roots};
        ssl_verify_client on;
        ssl_session_tickets off;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    }}
"""


def nginx_binary() -> str:
    """The path of nginx; raises ``FileNotFoundError`` when it is not installed."""
    # Debian keeps it where only root's PATH looks.
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    if binary is None:
        raise FileNotFoundError("nginx is not installed (Debian's package nginx)")
    return binary


class NginxProcess(Process):
    """Debian's nginx with one worker; ready when it accepts on ``probe``.

    Raises ``FileNotFoundError`` when nginx is not installed.
    """

    def __init__(
        self, name: str, configuration: str, directory: Path, probe: Address, *, stream: bool = False
    ) -> None:
        binary = nginx_binary()
        modules = f"load_module {STREAM_MODULE};\n" if stream else ""
        main = _MAIN.format(directory=directory, name=name, modules=modules)
        path = directory / f"{name}.conf"
        path.write_text(main + configuration)
        self._probe = probe
        argv: list[str | Path] = [binary, "-c", path, "-p", directory, "-e", "stderr"]
        super().__init__(name, argv, directory / f"{name}.log", ready=self._accepts)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(self._probe, timeout=1).close()
        except OSError:
            return False
        return True


def http_application(listen: Sequence[Address], directory: Path) -> NginxProcess:
    """Answers ``hello`` over endless keep-alive connections."""
    lines = "\n".join(f"        listen {host}:{port} backlog=4096;" for host, port in listen)
    return NginxProcess("http", _HTTP.format(directory=directory, listen=lines), directory, listen[0])


def stream_entry(
    name: str, routes: Mapping[Address, Address], own: Credentials, directory: Path
) -> NginxProcess:
    """TCP in, one mTLS connection out for each."""
    return _stream(name, _ENTRY, routes, own, directory)


def stream_exit(
    name: str, routes: Mapping[Address, Address], own: Credentials, directory: Path
) -> NginxProcess:
    """mTLS in, TCP out."""
    return _stream(name, _EXIT, routes, own, directory)


def _stream(
    name: str, template: str, routes: Mapping[Address, Address], own: Credentials, directory: Path
) -> NginxProcess:
    if not STREAM_MODULE.exists():
        raise FileNotFoundError(f"{STREAM_MODULE} is missing (Debian's package libnginx-mod-stream)")
    servers = "".join(
        template.format(listen=f"{here[0]}:{here[1]}", target=f"{there[0]}:{there[1]}", own=own)
        for here, there in routes.items()
    )
    configuration = _STREAM.format(directory=directory, name=name, servers=servers)
    return NginxProcess(name, configuration, directory, next(iter(routes)), stream=True)
