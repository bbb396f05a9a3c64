"""`banyan completion`: the script that makes a shell complete commands and options."""

from typing import Annotated

import typer

from banyanctl import output
from banyanctl.cli import COMPLETION_VARIABLE, examples, settings
from cluster_controller.errors import InvalidInput

SHELLS = ("bash", "zsh", "fish")


@examples(
    'eval "$(banyan completion bash)"',
    "banyan completion zsh > ~/.zfunc/_banyan",
    "banyan completion fish > ~/.config/fish/completions/banyan.fish",
)
def completion(shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]) -> None:
    """Print the completion script of a shell; evaluate it, or put it where the shell looks for it."""
    if shell not in SHELLS:
        raise InvalidInput(f"there is no completion for {shell!r}; there is for {', '.join(SHELLS)}")
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="banyan", complete_var=COMPLETION_VARIABLE, shell=shell)
    output.emit({"shell": shell, "script": script}, settings().output, lambda: print(script))
