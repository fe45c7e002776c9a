"""The `kemem` command: measure and train models from a shell, and run chapters with parameters of one's own.

    kemem entropy MODEL     knowledge entropy of a model, or of its revisions, on a text
    kemem resuscitate MODEL a model with its least used memories woken, as a new folder
    kemem acquire MODEL     train a model on a text with passages put into it, and measure what it takes in
    kemem edit MODEL        facts rewritten in a model's weights, and what that did to it
    kemem adapt MODEL       domains learned one after another, and what is forgotten of each
    kemem pretrain          train a model of the book, with checkpoints along the schedule
    kemem trace MODEL       where a model comes by the facts it knows, and which layers to edit
    kemem fetch NAME        a model or data of the hub, at one commit, checked, in the cache or a folder
    kemem convert MODEL     a native OLMo checkpoint as a folder that every command opens
    kemem run CHAPTER       execute a chapter, once for every combination of its parameters
    kemem claims            what the papers claim, and the verdict of the committed rows on it

Results go to standard output, all else to standard error. Exit status: 0; 2 for a request that cannot be
served, with one line that says why, before any long work; 130 when stopped by Ctrl-C; 1 when a chapter's own
code failed.
"""

# What only some command needs (torch, transformers, papermill) is imported where it is used, as --help must
# not wait for it.

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from kemem.cli.acquiring import acquire
from kemem.cli.adapting import adapt
from kemem.cli.chapter import run
from kemem.cli.editing import edit
from kemem.cli.fetching import convert, fetch
from kemem.cli.ledger import claims
from kemem.cli.measuring import entropy
from kemem.cli.pretraining import pretrain
from kemem.cli.resuscitating import resuscitate
from kemem.cli.terminal import note
from kemem.cli.tracing import trace

app = typer.Typer(
    name="kemem", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Measure and train language models as the book does, and run its chapters.",
)  # fmt: skip
app.command()(entropy)
app.command()(resuscitate)
app.command()(acquire)
app.command()(edit)
app.command()(adapt)
app.command()(pretrain)
app.command()(trace)
app.command()(fetch)
app.command()(convert)
app.command()(run)
app.command()(claims)


def _version(asked: bool | None) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"kemem {version('kemem')}")
        raise typer.Exit()


@app.callback()
def start(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit"),
    ] = None,
) -> None:
    """What stands before the name of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        status = app(args=given, prog_name="kemem", standalone_mode=False)
    except Exception as error:
        # a wrong command line; some versions of typer hold a copy of click, so its class does not tell
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        context = getattr(error, "ctx", None)
        text = " ".join(message().split()).rstrip(".")
        note(f"{text}; see {context.command_path if context else 'kemem'} --help.")
        return 2
    return status if isinstance(status, int) else 0
