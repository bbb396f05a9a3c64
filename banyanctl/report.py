"""How a command that failed says so: one readable error, the exit code of its kind, never a traceback for a BanyanError."""

import sys

from cluster_controller.errors import BanyanError


def fail(error: BanyanError) -> int:
    """Print the error on standard error; returns the exit code."""
    mark = "\x1b[1;31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    print(f"{mark} {error}", file=sys.stderr, flush=True)
    return error.exit_code
