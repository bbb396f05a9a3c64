"""The `banyan` command's entry.

`banyan run` is a long-lived process with a memory budget, so it goes straight to `banyanctl.run` and never loads what only a
person at a terminal needs. Every other command goes through the command tree in `banyanctl.cli`.
"""

import sys


def main() -> int:
    """Run one command; returns the exit code (0, or that of the error: see `cluster_controller.errors`)."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"]:
        from banyanctl import run

        return run.main(arguments[1:])
    from banyanctl import cli

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
