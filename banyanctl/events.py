"""How a running controller logs: events with fields on standard error, one line each, for people or as JSON."""

import logging
import sys

import msgspec
import structlog
from structlog.typing import Processor

from cluster_controller.errors import InvalidInput

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("auto", "human", "json")


def configure(form: str, level: str) -> None:
    """``form``: human, json, or auto (human on a terminal). InvalidInput names a wrong setting."""
    if form not in FORMATS:
        raise InvalidInput(f"log_format {form!r}: it is one of {', '.join(FORMATS)}", "log_format")
    if level not in LEVELS:
        raise InvalidInput(f"log_level {level!r}: it is one of {', '.join(LEVELS)}", "log_level")
    terminal, human = sys.stderr.isatty(), for_people(form)
    processors: list[Processor] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if human:
        processors.append(structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def for_people(form: str) -> bool:
    """Whether standard error is read by people, so that it may say more than events."""
    return form == "human" or (form == "auto" and sys.stderr.isatty())


def _json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
