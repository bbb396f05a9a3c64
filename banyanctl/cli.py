"""The command tree: names and one line of help here, everything else in one module per group, loaded when it is called.

`banyan --help` must be quick, so a group's module is imported only to run it or to show its own help. Options that every command
takes (`--at`, `--data`, `-o` …) are added by `Command` and kept in `Settings`; a command asks for them with `settings()`.
"""

import importlib
import os
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import click
import typer
from msgspec import Struct
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from banyanctl.output import FORMATS, Format
from banyanctl.report import fail
from cluster_controller.errors import BanyanError, InvalidInput

if TYPE_CHECKING:
    from banyanctl.client import Client

F = TypeVar("F", bound=Callable[..., Any])


class Entry(Struct, frozen=True):
    name: str
    target: str  # module:function, or module:group of a typer application
    summary: str
    remote: bool = True  # talks to a controller, so it takes --at and a credential


SECTIONS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Grow the tree",
        (
            Entry("init", "banyanctl.site:init", "Create the root of a new tree on this machine", remote=False),
            Entry("join", "banyanctl.site:join", "Make this machine a member of a tree, with a token", remote=False),
            Entry("run", "banyanctl.site:run", "Run this machine's controller in the foreground", remote=False),
            Entry("leave", "banyanctl.site:leave", "Take this machine out of its tree", remote=False),
            Entry("token", "banyanctl.token:app", "Rights to join: create, list, revoke"),
            Entry("approve", "banyanctl.cluster:approve", "Let in a cluster whose token asks for a person's approval"),
            Entry("cluster", "banyanctl.cluster:app", "Members: list, cordon, drain, remove, revoke, keep"),
            Entry("user", "banyanctl.user:app", "People and programs that may ask: create, list, revoke"),
        ),
    ),
    (
        "Run applications",
        (
            Entry("apply", "banyanctl.objects:apply", "Create or change objects from manifests"),
            Entry("get", "banyanctl.objects:get", "Show objects"),
            Entry("delete", "banyanctl.objects:delete", "Delete objects"),
            Entry("explain", "banyanctl.application:explain", "Say why an application runs where it does, and why not elsewhere"),
            Entry("history", "banyanctl.application:history", "Earlier versions of an application"),
            Entry("undo", "banyanctl.application:undo", "Go back to an earlier version of an application"),
            Entry("rollout", "banyanctl.rollout:app", "New versions on their way: status, pause, resume, undo, history"),
            Entry("model", "banyanctl.model:app", "Models: publish, list"),
            Entry("invoke", "banyanctl.invoke:invoke", "Send a request to an application, or to many clusters at once"),
        ),
    ),
    (
        "Look",
        (
            Entry("tree", "banyanctl.tree:tree", "Draw the tree: health, age, applications, broken links"),
            Entry("status", "banyanctl.status:status", "The state of a controller, or of one application"),
            Entry("events", "banyanctl.happened:events", "What happened: losses, returns, moves, replacements, changes"),
            Entry("bench", "banyanctl.bench.command:bench", "Measure your own tree: hops, changes, an application under load"),
            Entry("logs", "banyanctl.logs:logs", "What an application's instances print"),
            Entry("kubeconfig", "banyanctl.kubeconfig:kubeconfig", "Print a kubeconfig, so that kubectl speaks to any cluster of the tree"),
        ),
    ),
    (
        "Keep",
        (
            Entry("backup", "banyanctl.backup:backup", "Write an encrypted backup of a controller, while it works"),
            Entry("rotate", "banyanctl.rotate:app", "Change the tree's key, or an issuing key, while everything works"),
            Entry("move", "banyanctl.move:move", "Give a cluster another parent, while it works"),
            Entry("drill", "banyanctl.drill:app", "Play a fault on your own tree, and see what it keeps"),
            Entry("upgrade", "banyanctl.upgrade:app", "Plan an upgrade: which version runs where, in which order to go"),
            Entry("restore", "banyanctl.backup:restore", "Make a controller's data folder from its backup", remote=False),
        ),
    ),
    (
        "Other",
        (
            Entry("demo", "banyanctl.demo.command:demo", "Play a three-level tree on this machine that serves a real model", remote=False),
            Entry("shim", "banyanctl.shim:app", "Check a shim, or run one by itself", remote=False),
            Entry("completion", "banyanctl.completion:completion", "Print the completion script of a shell", remote=False),
            Entry("version", "banyanctl.version:version", "Versions of this program and of the controller it reaches"),
        ),
    ),
)
ENTRIES = {entry.name: entry for _, entries in SECTIONS for entry in entries}
COMPLETION_VARIABLE = "_BANYAN_COMPLETE"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


# --- options that every command takes ---


class Settings(Struct):
    """What the common options said."""

    at: str = ""
    data: str | None = None
    kubeconfig: str | None = None
    namespace: str = ""
    output: Format = "table"

    def client(self) -> "Client":
        """A client of the controller that was asked for, or of the descendant that --at names."""
        from banyanctl.client import Client
        from banyanctl.endpoint import resolve

        entry = Client(resolve(self.kubeconfig, self.data))
        return entry.at(self.at)


def settings() -> Settings:
    """The common options of the command that runs now."""
    return _kept(click.get_current_context())


def _kept(context: click.Context) -> Settings:
    root = context.find_root()
    if root.obj is None:
        root.obj = Settings()
    assert isinstance(root.obj, Settings)
    return root.obj


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is not None:
        setattr(_kept(context), str(parameter.name), value)


def _option(*names: str, **given: Any) -> click.Option:
    return click.Option(list(names), expose_value=False, callback=_keep, **given)


def _common_options(remote: bool) -> list[click.Option]:
    output = _option("-o", "--output", type=click.Choice(FORMATS), help="How to print the answer.  [default: table]")
    data = _option("--data", metavar="DIR", help="Data folder of a controller on this machine.")
    if not remote:
        return [data, output]
    return [
        _option("--at", metavar="CLUSTER", help="Ask the controller of this descendant, through the tree."),
        data,
        _option("--kubeconfig", metavar="FILE", help="Address and credential of a controller.  [default: ~/.config/banyan/config]"),
        output,
    ]


class Command(TyperCommand):
    """A command with the common options, and its examples below its help."""

    remote = True
    examples: tuple[str, ...] = ()

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = [parameter for parameter in self.params if parameter.name != "help"]
        taken = {name for parameter in own for name in parameter.opts}
        common = [option for option in self._common if not taken.intersection(option.opts)]
        help_option = self.get_help_option(ctx)
        return [*own, *common, *([help_option] if help_option else [])]

    @property
    def _common(self) -> list[click.Option]:
        return _common_options(self.remote)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def examples(*lines: str) -> Callable[[F], F]:
    """Commands that a reader can repeat; shown by `--help`."""

    def mark(function: F) -> F:
        function.__dict__["examples"] = lines
        return function

    return mark


def application(help_text: str) -> typer.Typer:
    """A group of commands, for `banyan GROUP COMMAND`."""
    return typer.Typer(help=help_text, no_args_is_help=True, rich_markup_mode=None, add_completion=False, context_settings=dict(CONTEXT))


def finish(command: click.Command, entry: Entry) -> click.Command:
    """Give a command, or each of a group, its examples and whether it talks to a controller."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            finish(child, Entry(name, entry.target, "", entry.remote))
    elif isinstance(command, Command):
        command.remote = entry.remote
        command.examples = getattr(command.callback, "examples", ()) or ()
    return command


def load(entry: Entry) -> click.Command:
    """Import a command's module and make the command."""
    module, _, attribute = entry.target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command = get_command(found)
    else:
        single = application(entry.summary)
        single.command(entry.name, cls=Command)(found)
        command = get_command(single)
    command.name = entry.name
    return finish(command, entry)


class Root(TyperGroup):
    """The `banyan` command: knows all names, imports only what is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ENTRIES)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Typer's own hint knows only commands that are loaded."""
        if args and args[0] not in ENTRIES and not args[0].startswith("-"):
            close = get_close_matches(args[0], ENTRIES, 1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = ENTRIES.get(cmd_name)
        return load(entry) if entry else None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        help_option = self.get_help_option(ctx)
        return [*_common_options(remote=True), *([help_option] if help_option else [])]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, entries in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(entry.name, entry.summary) for entry in entries])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in ("banyan init root && banyan run", "banyan tree", "banyan --at edge-1 get pods", "banyan COMMAND --help"):
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")


def build() -> click.Command:
    """The whole command tree."""
    app = typer.Typer(
        cls=Root,
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        context_settings=dict(CONTEXT),
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def banyan() -> None:
        """A tree of clusters that runs AI applications next to their data, and lives on when a branch is cut off."""

    command = get_command(app)
    command.name = "banyan"
    return command


def main(arguments: list[str]) -> int:
    """Parse, run, and turn errors into messages and exit codes."""
    if COMPLETION_VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()  # the shells' formats, as `banyan completion` prints the scripts for them
    try:
        result = build().main(args=arguments, prog_name="banyan", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return InvalidInput.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone (`banyan get … | head`): nobody is left to tell
        return 0
    except BanyanError as error:
        return fail(error)
    return result if isinstance(result, int) else 0
