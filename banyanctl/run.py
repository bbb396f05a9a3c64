"""`banyan run`: the controller of this machine, in the foreground, with nothing loaded that it does not need.

The flags are the fields of `cluster_controller.config.Config`, read from there, so that the help cannot lie.
"""

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from banyanctl.places import default_data
from banyanctl.report import fail
from cluster_controller import config
from cluster_controller.config import Config
from cluster_controller.errors import BanyanError, InvalidInput

USAGE = """\
Usage: banyan run [OPTIONS]

  Run this machine's controller in the foreground, until SIGTERM or Ctrl-C. Its applications go on running.

  Settings come from DATA/banyan.toml, from BANYAN_... variables and from these flags, each overriding the one before.
"""
EXAMPLES = """
Examples:
  banyan run
  banyan run --data /srv/banyan --log-format json
  BANYAN_API_LISTEN=0.0.0.0:8443 banyan run
"""


def main(arguments: list[str]) -> int:
    """Parse, load the configuration, run; returns the exit code."""
    try:
        if "-h" in arguments or "--help" in arguments:
            print(help_text())
            return 0
        flags = parse(arguments)
        keep_out()
        from banyanctl import service

        return service.run(config.load(folder(flags), overrides=flags))
    except BanyanError as error:
        return fail(error)


def keep_out() -> None:
    """structlog loads rich wherever it is installed: 6 MiB that no log line needs. Before structlog is imported."""
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]


def folder(flags: dict[str, Any]) -> Path:
    """The data folder: --data, BANYAN_DATA, or where a controller lives by default."""
    given = flags.pop("data", None)
    return default_data() if given is None else Path(given)


def parse(arguments: list[str]) -> dict[str, Any]:
    """``--field-name VALUE`` or ``--field-name=VALUE`` → the fields of Config; InvalidInput names the flag."""
    fields = {info.name: info for info in msgspec.structs.fields(Config)}
    found: dict[str, Any] = {}
    waiting = iter(arguments)
    for argument in waiting:
        flag, separator, value = argument.partition("=")
        info = fields.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        if info is None:
            raise InvalidInput(f"banyan run: there is no option {flag}; see banyan run --help", flag)
        text = value if separator else next(waiting, None)
        if text is None:
            raise InvalidInput(f"banyan run: {flag} needs a value; see banyan run --help", flag)
        found[info.name] = _value(info, text, flag)
    return found


def _value(info: msgspec.structs.FieldInfo, text: str, flag: str) -> Any:
    if info.type == dict[str, str]:
        return config.parse_labels(text, flag)
    if info.type == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def documented() -> dict[str, str]:
    """What `config.py` says of each field."""
    import ast
    import inspect
    import textwrap

    found: dict[str, str] = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(Config))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[ast.unparse(statement.target)] = str(following.value.value)
    return found


def help_text(columns: int = 0) -> str:
    """The usage, with each field's own documentation."""
    import textwrap

    lines, texts = [USAGE, "Options:"], documented()
    width = columns or min(100, _columns())
    for info in msgspec.structs.fields(Config):
        default = "" if info.default in (msgspec.NODEFAULT, "", ()) else f"  [default: {info.default}]"
        text = textwrap.wrap(texts.get(info.name, "") + default, width - 10) or [""]
        lines += [f"  --{info.name.replace('_', '-')} {_metavar(info)}", *(" " * 10 + line for line in text)]
    return "\n".join([*lines, "  -h, --help", " " * 10 + "Show this message and exit."]) + "\n" + EXAMPLES.rstrip()


def _metavar(info: msgspec.structs.FieldInfo) -> str:
    if info.type == dict[str, str]:
        return "KEY=VALUE,..."
    if info.type == tuple[str, ...]:
        return "TEXT,..."
    return {"data": "DIR"}.get(info.name, "SECONDS" if info.type is float else "TEXT")


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 100
