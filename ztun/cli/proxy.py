"""``ztun proxy``: the node proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from certs.spiffe import DEFAULT_TRUST_DOMAIN


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("proxy")
    def proxy_command(
        config: Annotated[
            list[Path],
            typer.Option(help="File or directory with YAML; may be given again.", show_default=False),
        ],
        node: Annotated[str, typer.Option(help="Name of this node.", show_default=False)],
        ca: Annotated[
            str,
            typer.Option(
                help="A CA directory, a directory of certificate files, or the URL of a CA.",
                show_default=False,
            ),
        ],
        mode: Annotated[
            Literal["ambient", "sidecar"],
            typer.Option(help="Serve all pods of the node, or one workload with a routing engine."),
        ] = "ambient",
        engine: Annotated[
            str, typer.Option(help="Routing engine of sidecar mode.", show_default="sidecar")
        ] = "",
        workload: Annotated[
            str, typer.Option(help="NAMESPACE/NAME of the workload of sidecar mode.", show_default=False)
        ] = "",
        forward: Annotated[
            list[str] | None,
            typer.Option(
                metavar="[IP:]PORT=HOST:PORT@NS/WORKLOAD",
                help="A local port that enters the mesh as that workload; may be given again.",
                show_default=False,
            ),
        ] = None,
        namespace: Annotated[str, typer.Option(help="Namespace of objects that name none.")] = "default",
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
        """Carry the TCP traffic of the pods of one node over mutually authenticated HBONE tunnels."""
        from ztun.config import settings_from
        from ztun.errors import ConfigError
        from ztun.proxy.node import run

        try:
            settings = settings_from(
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
        except ConfigError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise typer.BadParameter(f"{error}{hint}") from error
        raise typer.Exit(run(settings))
