"""`python -m kemem.book build|html|record|smoke|measure|canary|check`: what the Makefile calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kemem.book import build as steps
from kemem.book.places import checkout
from kemem.errors import BadInput
from kemem.studies.lab import SCALES

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Only = Annotated[list[str] | None, typer.Argument(help="chapter numbers; all by default")]
Scale = Annotated[str, typer.Option(help=f"one of {', '.join(SCALES)}")]


def _known(scale: str) -> str:
    if scale not in SCALES:
        raise BadInput(f"scale is one of {', '.join(SCALES)}; got {scale!r}.")
    return scale


@app.command()
def build(scale: Scale = "laptop") -> None:
    """Run every chapter and render the book."""
    raise typer.Exit(steps.build(checkout(), scale=_known(scale)))


@app.command()
def html(
    out: Annotated[Path | None, typer.Option(help="where to put _build/html")] = None,
    builder: Annotated[str, typer.Option(help="html or linkcheck")] = "html",
) -> None:
    """Render the committed notebooks."""
    raise typer.Exit(steps.html(checkout(), out=out.resolve() if out else None, builder=builder))


@app.command()
def record(scale: Scale = "laptop", only: Only = None) -> None:
    """Compute missing records, then write the committed notebooks from them; gpu and paper in slices."""
    raise typer.Exit(steps.record(checkout(), scale=_known(scale), only=only))


@app.command()
def smoke(only: Only = None) -> None:
    """Write the smoke notebooks anew, from an empty store."""
    raise typer.Exit(steps.smoke(checkout(), only=only))


@app.command()
def measure(scale: Scale = "laptop", only: Only = None) -> None:
    """Write down what each chapter costs from an empty store."""
    raise typer.Exit(steps.measure(checkout(), scale=_known(scale), only=only))


@app.command()
def canary() -> None:
    """Render the committed notebooks on the newest plain Sphinx."""
    raise typer.Exit(steps.canary(checkout()))


@app.command()
def check() -> None:
    """Run the committed and the smoke notebooks again and compare every output."""
    raise typer.Exit(steps.check(checkout()))


def main() -> None:
    try:
        app()
    except BadInput as error:
        print(f"kemem: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
