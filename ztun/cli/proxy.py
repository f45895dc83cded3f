"""``ztun proxy``: the node proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.cli.options import AccessLog, LogFormat, LogLevel, Port, TrustDomain, usage_checked


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("proxy", short_help="Carry the TCP traffic of one node's pods.")
    def proxy_command(
        config: Annotated[
            list[Path],
            typer.Option(
                metavar="PATH", help="File or directory with YAML; may be given again.", show_default=False
            ),
        ],
        node: Annotated[str, typer.Option(metavar="NAME", help="Name of this node.", show_default=False)],
        ca: Annotated[
            str,
            typer.Option(
                metavar="SOURCE",
                help="A CA directory, a directory of certificate files, or the URL of a CA.",
                show_default=False,
            ),
        ],
        mode: Annotated[
            Literal["ambient", "sidecar"],
            typer.Option(
                metavar="ambient|sidecar",
                help="Serve all pods of the node, or one workload with a routing engine.",
            ),
        ] = "ambient",
        engine: Annotated[
            str, typer.Option(metavar="NAME", help="Routing engine of sidecar mode.", show_default="sidecar")
        ] = "",
        workload: Annotated[
            str,
            typer.Option(metavar="NAMESPACE/NAME", help="The workload of sidecar mode.", show_default=False),
        ] = "",
        forward: Annotated[
            list[str] | None,
            typer.Option(
                metavar="[IP:]PORT=HOST:PORT@NS/WORKLOAD",
                help="A local port that enters the mesh as that workload; may be given again.",
                show_default=False,
            ),
        ] = None,
        namespace: Annotated[
            str, typer.Option(metavar="NAME", help="Namespace of objects that name none.")
        ] = "default",
        trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
        admin_port: Port = 15000,
        metrics_port: Port = 15020,
        readiness_port: Port = 15021,
        log_format: LogFormat = None,
        log_level: LogLevel = None,
        access_log: AccessLog = None,
    ) -> None:
        """Carry the TCP traffic of the pods of one node over mutually authenticated HBONE tunnels."""
        from ztun.config import settings_from
        from ztun.proxy.node import run

        settings = usage_checked(
            lambda: settings_from(
                config_paths=tuple(config),
                node=node,
                ca=ca,
                mode=mode,
                engine=engine,
                workload=workload,
                forwards=tuple(forward or ()),
                namespace=namespace,
                trust_domain=trust_domain,
                admin_port=admin_port,
                metrics_port=metrics_port,
                readiness_port=readiness_port,
                log_format=log_format,
                log_level=log_level,
                access_log=access_log,
            )
        )
        raise typer.Exit(run(settings))
