"""Set-up of structlog: levels per scope, ztunnel's line forms, and a limit on repeated warnings.

``get_logger("proxy::inbound")`` gives a logger that can be used at import time. Until :class:`Logging` is
installed its lines go to the standard library's logging, so a program that uses a part of this package keeps
its own set-up. What a peer does wrong is expected and belongs at debug; warn and error are for what an
operator can act on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, cast

import structlog

from ztun.errors import ZtunError
from ztun.telemetry.levels import DEBUG, ERROR, INFO, TRACE, WARN, Levels, level_name
from ztun.telemetry.lines import LogFormat, Span, format_line
from ztun.telemetry.writer import LineWriter

REPEAT_WINDOW_SECONDS = (
    10.0  # one burst of a warning per window: a flood stays readable, a rare one is never hidden
)
REPEAT_BURST_LINES = 10
REPEAT_TABLE_ENTRIES = 1024  # different warnings remembered; the oldest is forgotten first

_SPANS = "spans"


class RepeatGate:
    """Lets a burst of the same warning through per window and counts the rest. ``now`` is in seconds."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], list[float]] = OrderedDict()  # key -> start, passed, held
        self._lock = threading.Lock()  # warnings only, and never while anything waits

    def admit(self, key: tuple[str, ...], now: float) -> int | None:
        """None to hold the line back, otherwise how many equal ones were held back before it."""
        with self._lock:
            entry = self._seen.get(key)
            if entry is None:
                self._seen[key] = [now, 1, 0]
                if len(self._seen) > REPEAT_TABLE_ENTRIES:
                    self._seen.popitem(last=False)
                return 0
            self._seen.move_to_end(key)
            if now - entry[0] >= REPEAT_WINDOW_SECONDS:
                held = int(entry[2])
                entry[:] = [now, 1, 0]
                return held
            if entry[1] < REPEAT_BURST_LINES:
                entry[1] += 1
                return 0
            entry[2] += 1
            return None


class ScopedLogger(structlog.BoundLoggerBase):
    """A bound logger with ztunnel's levels; a line below the threshold of its scope is not formatted."""

    def trace(self, event: str, **fields: object) -> None:
        """Every step, for a single reproduction."""
        self._emit(TRACE, event, fields)

    def debug(self, event: str, **fields: object) -> None:
        """Detail, and everything a peer may do wrong."""
        self._emit(DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """A change of state an operator wants to see."""
        self._emit(INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something an operator should look at; repeated ones are limited."""
        self._emit(WARN, event, fields)

    warn = warning

    def error(self, event: str, **fields: object) -> None:
        """Something that no longer works; repeated ones are limited."""
        self._emit(ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error, with the traceback of the exception being handled."""
        fields.setdefault("exc_info", True)
        self._emit(ERROR, event, fields)

    def span(self, name: str, **fields: object) -> ScopedLogger:
        """A logger whose lines carry one more span, e.g. ``span("proxy", wl="default/echo")``."""
        return self.bind(**{_SPANS: (*self._context.get(_SPANS, ()), (name, fields))})

    def enabled(self, level: int) -> bool:
        """Whether a line of this level would be written; for callers whose fields are costly to make."""
        target = self._target()
        return True if target is None else target.enabled(level)

    def _target(self) -> _ScopeTarget | None:
        """The way to the writer; None while nothing is installed."""
        if not isinstance(self._logger, _ScopeTarget) and structlog.is_configured():
            # Bound before the set-up, as loggers made at import time are: adopt it now.
            settings = structlog.get_config()
            target = settings["logger_factory"](self._context["scope"])
            if isinstance(target, _ScopeTarget):
                self._logger, self._processors = target, settings["processors"]
        return self._logger if isinstance(self._logger, _ScopeTarget) else None

    def _emit(self, level: int, event: str, fields: dict[str, object]) -> None:
        target = self._target()
        if target is None:
            _to_standard_library(self._context, level, event, fields)
        elif target.enabled(level):
            try:
                arguments, _ = self._process_event(level_name(level), event, cast("dict[str, Any]", fields))
            except structlog.DropEvent:
                return
            target.put(arguments[0])


def _to_standard_library(
    context: Mapping[str, object], level: int, event: str, fields: Mapping[str, object]
) -> None:
    shown = {
        key: value for key, value in {**context, **fields}.items() if key not in (_SPANS, "exc_info", "scope")
    }
    text = " ".join([event, *(f"{key}={value}" for key, value in shown.items())])
    scope = str(context.get("scope", "ztun"))
    logging.getLogger(scope).log(level, "%s", text, exc_info=bool(fields.get("exc_info")))


def get_logger(scope: str) -> ScopedLogger:
    """The logger of a scope such as ``proxy::inbound``; add fields with ``.bind(k=v)`` or ``.span(...)``."""
    proxy = structlog.wrap_logger(
        None, wrapper_class=ScopedLogger, context_class=dict, logger_factory_args=(scope,), scope=scope
    )
    return cast("ScopedLogger", proxy)


class _ScopeTarget:
    """What structlog calls the wrapped logger: the threshold of one scope and the way to the writer."""

    __slots__ = ("_levels", "_writer", "scope")

    def __init__(self, scope: str, levels: Levels, writer: LineWriter) -> None:
        self.scope = scope
        self._levels = levels
        self._writer = writer

    def enabled(self, level: int) -> bool:
        return self._levels.enabled(self.scope, level)

    def put(self, line: str) -> None:
        self._writer.put(line)


class _LibraryHandler(logging.Handler):
    """Carries the records of libraries over into our line form."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, object] = {"exc_info": record.exc_info} if record.exc_info else {}
            level = ERROR if record.levelno >= logging.ERROR else WARN
            get_logger(record.name)._emit(level, record.getMessage(), fields)
        except Exception:
            # The contract of a handler: a record that cannot be formatted is the library's bug, not a reason
            # to stop.
            self.handleError(record)


class Logging:
    """The logging of a process: ``install`` once at start, ``close`` at the end (before the writer is
    closed).

    Libraries that use the standard library's logging are heard from warning upwards: some, hpack for one,
    format a debug line per header when they are asked for more.
    """

    def __init__(
        self,
        writer: LineWriter,
        *,
        style: LogFormat = "text",
        levels: Levels | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.levels = levels or Levels()
        self._writer = writer
        self._style: LogFormat = style
        self._clock = clock
        self._monotonic = monotonic
        self._gate = RepeatGate()
        self._handler = _LibraryHandler()
        self._root_level = logging.WARNING

    def install(self) -> None:
        """Take over structlog and the root logger of the standard library."""
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                self._limit_repeats,
                _spread_error,
                structlog.processors.format_exc_info,
                self._render,
            ],
            wrapper_class=ScopedLogger,
            logger_factory=lambda scope="ztun": _ScopeTarget(scope, self.levels, self._writer),
            cache_logger_on_first_use=False,
        )
        root = logging.getLogger()
        self._root_level = root.level
        root.setLevel(logging.WARNING)
        root.addHandler(self._handler)

    def close(self) -> None:
        """Give both back."""
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._root_level)
        structlog.reset_defaults()

    def _limit_repeats(
        self, target: _ScopeTarget, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        if method in ("warn", "error"):
            error = event.get("error")
            code = error.code if isinstance(error, ZtunError) else str(event.get("code", ""))
            held = self._gate.admit((target.scope, method, str(event["event"]), code), self._monotonic())
            if held is None:
                raise structlog.DropEvent
            if held:
                event["suppressed"] = held
        return event

    def _render(self, target: _ScopeTarget, method: str, event: MutableMapping[str, Any]) -> str:
        message = str(event.pop("event"))
        event.pop("scope", None)
        spans: tuple[Span, ...] = event.pop(_SPANS, ())
        return format_line(self._style, self._clock(), method, target.scope, message, event.items(), spans)


def _spread_error(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A ``ZtunError`` given as ``error`` becomes its message, code, stage and hint."""
    error = event.get("error")
    if isinstance(error, ZtunError):
        event.update(error_fields(error))
    return event


def error_fields(error: ZtunError) -> dict[str, str]:
    """``error``, ``error.code``, ``error.stage`` and, when there is one, ``error.hint``."""
    fields = {"error": str(error), "error.code": error.code, "error.stage": error.stage}
    return fields | {"error.hint": error.hint} if error.hint else fields
