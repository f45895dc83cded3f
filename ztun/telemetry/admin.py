"""The three web applications: admin (dump, log levels, shutdown), metrics and readiness."""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette_compress import CompressMiddleware

from ztun.errors import ConfigError
from ztun.telemetry.config_dump import ConfigDump
from ztun.telemetry.levels import Levels
from ztun.telemetry.metrics import Metrics
from ztun.telemetry.readiness import Readiness

COMPRESSION_LEVEL = (
    1  # of zstd, brotli and gzip; a scrape every few seconds: most of the gain for the least work
)
COMPRESSION_MIN_BYTES = 1024

OPENMETRICS = "application/openmetrics-text"
OPENMETRICS_TYPE = f"{OPENMETRICS};charset=utf-8;version=1.0.0"
PLAIN_TYPE = "text/plain; charset=utf-8"

_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_LOGGING_HELP = """
usage: POST /logging                                     (show the levels)
usage: POST /logging?level=<level>                       (set the level of everything)
usage: POST /logging?level=<scope>=<level>,<scope>=...   (set the level of scopes)
usage: POST /logging?reset[&level=...]                   (go back to the start, then set)

level: trace|debug|info|warn|error|off
scope: for example proxy, proxy::inbound, access
"""
_PAGES = (
    ("config_dump", "GET", "the mesh, certificates, connections and settings as JSON"),
    ("debug/tasks", "GET", "what the event loop is doing, task by task"),
    ("logging", "POST", "show or change log levels"),
    ("quitquitquit", "POST", "drain and shut down, as SIGTERM does"),
)


def admin_app(
    dump: ConfigDump, levels: Levels, shutdown: Callable[[], None], tasks: Callable[[], str]
) -> Starlette:
    """The admin application. ``shutdown`` starts the drain and returns; ``tasks`` may raise ``TimeoutError``. Both run
    on the server's thread.
    """

    async def index(_request: Request) -> Response:
        rows = "".join(
            f'<tr><td><a href="{path}">{path}</a></td><td>{method}</td><td>{text}</td></tr>'
            for path, method, text in _PAGES
        )
        return HTMLResponse(
            f"<!doctype html><title>ztun</title><h1>ztun</h1><table>{rows}</table>"
            "<p>Metrics and readiness have ports of their own: 15020 and 15021 by default.</p>"
        )

    async def config_dump(_request: Request) -> Response:
        return Response(json.dumps(dump.collect(), indent=2), media_type="application/json")

    async def logging(request: Request) -> Response:
        if (refusal := _refuse_web_pages(request)) is not None:
            return refusal
        directives = request.query_params.get("level", "")
        try:
            if "reset" in request.query_params:
                levels.reset(directives)
            elif "level" in request.query_params:
                levels.update(directives)
        except ConfigError as error:
            return PlainTextResponse(f"{error} ({error.hint})\n{_LOGGING_HELP}", 400)
        return PlainTextResponse(f"current log level is {levels}\n")

    async def debug_tasks(_request: Request) -> Response:
        try:
            return PlainTextResponse(tasks())
        except TimeoutError as error:
            hint = "send SIGUSR1 to see on standard error where it is"
            return PlainTextResponse(f"{error}; {hint}\n", 503)

    async def quit_quit_quit(request: Request) -> Response:
        if (refusal := _refuse_web_pages(request)) is not None:
            return refusal
        shutdown()
        return PlainTextResponse("shutdown now\n")

    return _application(
        Route("/", index, methods=_ANY),
        Route("/config_dump", config_dump, methods=_ANY),
        Route("/debug/tasks", debug_tasks, methods=_ANY),
        Route("/logging", logging, methods=["POST"]),
        Route("/quitquitquit", quit_quit_quit, methods=["POST"]),
    )


def metrics_app(metrics: Metrics) -> Starlette:
    """``/metrics`` and ``/stats/prometheus``. The body is OpenMetrics text whatever the content type says."""

    async def scrape(request: Request) -> Response:
        wanted = OPENMETRICS in request.headers.get("accept", "")
        content_type = OPENMETRICS_TYPE if wanted else PLAIN_TYPE
        return Response(metrics.render(), headers={"content-type": content_type})

    return _application(Route("/metrics", scrape), Route("/stats/prometheus", scrape))


def readiness_app(readiness: Readiness) -> Starlette:
    """``/healthz/ready``: 200 when ready, otherwise 500 and what is still pending."""

    async def ready(request: Request) -> Response:
        if request.method != "GET":
            return Response(status_code=405, headers={"allow": "GET"})
        if pending := readiness.pending:
            return PlainTextResponse(f"not ready, pending: {', '.join(pending)}\n", 500)
        return PlainTextResponse("ready\n")

    return _application(Route("/healthz/ready", ready, methods=_ANY))


def _refuse_web_pages(request: Request) -> Response | None:
    """A browser names the page that sends a POST; no page has any business here, whatever it may reach."""
    if "origin" in request.headers:
        return PlainTextResponse("requests from web pages are refused\n", 403)
    return None


def _application(*routes: Route) -> Starlette:
    compress = Middleware(
        CompressMiddleware,
        minimum_size=COMPRESSION_MIN_BYTES,
        zstd_level=COMPRESSION_LEVEL,
        brotli_quality=COMPRESSION_LEVEL,
        gzip_level=COMPRESSION_LEVEL,
    )
    application = Starlette(routes=routes, middleware=[compress])
    application.router.redirect_slashes = False
    return application
