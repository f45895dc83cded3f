"""``waypoint gateway``: a gateway from outside into the mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from certs.spiffe import DEFAULT_TRUST_DOMAIN


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
        trust_domain: Annotated[str, typer.Option(help="Trust domain of the mesh.")] = DEFAULT_TRUST_DOMAIN,
        admin_port: Annotated[int, typer.Option(min=1, max=65535)] = 15000,
        metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 15020,
        readiness_port: Annotated[int, typer.Option(min=1, max=65535)] = 15021,
        log_format: Annotated[
            Literal["text", "json"] | None,
            typer.Option(help="Form of log lines.", show_default="LOG_FORMAT, else text"),
        ] = None,
        log_level: Annotated[
            str | None,
            typer.Option(help="Level, or levels per scope.", show_default="RUST_LOG, else info"),
        ] = None,
        access_log: Annotated[
            Literal["text", "json", "none"] | None,
            typer.Option(help="Form of the lines that report a connection.", show_default="as --log-format"),
        ] = None,
    ) -> None:
        """Listen where Gateway objects say, and carry the connections into the mesh by its routing rules."""
        from waypoint.gateway.process import run
        from waypoint.gateway.view import Name
        from ztun.config import settings_from
        from ztun.errors import ConfigError

        labels = dict(_label(text) for text in label or ())
        try:
            settings = settings_from(
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
        except ConfigError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise typer.BadParameter(f"{error}{hint}") from error
        raise typer.Exit(run(settings, Name(namespace, name, labels)))


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise typer.BadParameter(f"--label {text!r}: expected KEY=VALUE, e.g. istio=ingressgateway")
    return key, value
