"""``waypoint run``: a waypoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.cli.options import AccessLog, LogFormat, LogLevel, Port, TrustDomain, usage_checked


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run_command)


def run_command(
    config: Annotated[
        list[Path],
        typer.Option(help="File or directory with YAML; may be given again.", show_default=False),
    ],
    name: Annotated[str, typer.Option(help="Name of the waypoint's Gateway.", show_default=False)],
    namespace: Annotated[str, typer.Option(help="Namespace of the waypoint.", show_default=False)],
    ca: Annotated[
        str,
        typer.Option(
            help="A CA directory, a directory of certificate files, or the URL of a CA.", show_default=False
        ),
    ],
    engine: Annotated[str, typer.Option(help="Routing engine.")] = "ambient",
    workload: Annotated[
        str,
        typer.Option(
            metavar="NS/POD",
            help="The pod that this process is, when the waypoint has several.",
            show_default="the only one",
        ),
    ] = "",
    default_namespace: Annotated[str, typer.Option(help="Namespace of objects that name none.")] = "default",
    trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
    admin_port: Port = 15000,
    metrics_port: Port = 15020,
    readiness_port: Port = 15021,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    access_log: AccessLog = None,
) -> None:
    """Route the connections of the services and workloads that name this waypoint in istio.io/use-waypoint."""
    from waypoint.server.instance import WaypointName
    from waypoint.server.process import run
    from ztun.config import settings_from

    settings = usage_checked(
        lambda: settings_from(
            config_paths=tuple(config),
            node=f"{namespace}/{name}",
            ca=ca,
            engine=engine,
            workload=workload,
            namespace=default_namespace,
            trust_domain=trust_domain,
            admin_port=admin_port,
            metrics_port=metrics_port,
            readiness_port=readiness_port,
            log_format=log_format,
            log_level=log_level,
            access_log=access_log,
        )
    )
    raise typer.Exit(run(settings, WaypointName(namespace, name)))
