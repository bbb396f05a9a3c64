"""Events with fields, one JSON object per line on stderr: ``{"event": "model.serving", "level": "info", "version": "2", …}``.

The same shape as the controller's structlog lines. structlog itself is left out: importing it brings in rich, six megabytes
that each replica on a small machine would pay for.
"""

import sys
from datetime import UTC, datetime
from typing import Any

import msgspec


def info(event: str, **fields: Any) -> None:
    _write("info", event, fields)


def warning(event: str, **fields: Any) -> None:
    _write("warning", event, fields)


def error(event: str, **fields: Any) -> None:
    _write("error", event, fields)


def _write(level: str, event: str, fields: dict[str, Any]) -> None:
    line = {"timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
    sys.stderr.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stderr.buffer.flush()
