"""`batchq completion`: the script that lets a shell complete commands, options, choices and names of batches."""

from __future__ import annotations

import click

from batchq.cli.exits import COMPLETE_VARIABLE
from batchq.cli.options import HELP_NAMES, command_class

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=command_class(), context_settings=HELP_NAMES, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes batchq's commands, options and batches in bash (4.4 or newer), zsh or fish.

    \b
    eval "$(batchq completion bash)"                                         # in ~/.bashrc
    eval "$(batchq completion zsh)"                                          # in ~/.zshrc, after compinit
    batchq completion fish > ~/.config/fish/completions/batchq.fish          # once

    Names of batches come from the queue that BATCHQ_DB, a file of settings or a --db before the name says.
    """  # fmt: skip
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(_without_check(script)(context.find_root().command, {}, "batchq", COMPLETE_VARIABLE).source(), nl=False)


def _without_check(script: type) -> type:
    """Return a class that does not start a bash to see which one it is: the script may be for another machine."""
    return type(script.__name__, (script,), {"_check_version": staticmethod(lambda: None)})
