"""``waypoint gateway``: a gateway from outside into the mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from certs.spiffe import DEFAULT_TRUST_DOMAIN
from ztun.cli.options import AccessLog, LogFormat, LogLevel, Port, TrustDomain, usage_checked


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("gateway")
    def gateway_command(
        config: Annotated[
            list[Path],
            typer.Option(help="File or directory with YAML; may be given again.", show_default=False),
        ],
        name: Annotated[str, typer.Option(help="Its pod, or its Deployment.", show_default=False)],
        namespace: Annotated[str, typer.Option(help="Namespace of the gateway.", show_default=False)],
        ca: Annotated[
            str,
            typer.Option(
                help="A CA directory, a directory of certificate files, or the URL of a CA.",
                show_default=False,
            ),
        ],
        engine: Annotated[str, typer.Option(help="Routing engine.")] = "ambient",
        label: Annotated[
            list[str] | None,
            typer.Option(
                metavar="KEY=VALUE",
                help="A label besides those of its pod, for selectors; may be given again.",
                show_default=False,
            ),
        ] = None,
        default_namespace: Annotated[
            str, typer.Option(help="Namespace of objects that name none.")
        ] = "default",
        trust_domain: TrustDomain = DEFAULT_TRUST_DOMAIN,
        admin_port: Port = 15000,
        metrics_port: Port = 15020,
        readiness_port: Port = 15021,
        log_format: LogFormat = None,
        log_level: LogLevel = None,
        access_log: AccessLog = None,
    ) -> None:
        """Listen where Gateway objects say, and carry the connections into the mesh by its routing rules."""
        from waypoint.gateway.process import run
        from waypoint.gateway.view import Name
        from ztun.config import settings_from

        labels = dict(_label(text) for text in label or ())
        settings = usage_checked(
            lambda: settings_from(
                config_paths=tuple(config),
                node=f"{namespace}/{name}",
                ca=ca,
                engine=engine,
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
        raise typer.Exit(run(settings, Name(namespace, name, labels)))


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"--label {text!r}: expected KEY=VALUE, e.g. istio=ingressgateway")
    return key, value
