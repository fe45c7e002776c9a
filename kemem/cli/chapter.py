"""`kemem run`: a chapter executed with parameters of one's own, once for every combination of them."""

import ast
import hashlib
import itertools
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from kemem.cli import forecasting
from kemem.cli.options import SCALES, at_least
from kemem.cli.terminal import check_json, guarded, note
from kemem.errors import BadInput

NEXT_CORPUS = re.compile(r",(?=(?:docstrings|world)(?:[:+,]|$)|(?:files|hub):)")
PLACES = ("model", "text", "requests", "layout")  # where they name something that is here, they are paths
CORPORA = ("corpus", "text")
WORDS = (
    "scale",
    "device",
    "dtype",
    "coefficient",
    "padding",
    "revisions",
    *CORPORA,
    *PLACES,
)  # never numbers


@guarded("the same command goes on where it was: finished rows are kept")
def run(
    chapter: Annotated[str, typer.Argument(metavar="CHAPTER", help="its number, as 03, or its file stem")],
    scale: Annotated[
        str | None, typer.Option(help=f"sizes of everything: {SCALES}; by default the chapter's")
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", metavar="NAME=VALUE[,VALUE...]", help="of the chapter; may be repeated"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="by default _build/runs/CHAPTER in the checkout")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or mps; by default the chapter's")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="by default the chapter's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="where the chapter has this parameter")] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="compute its rows first, by local:N, gpus, or slurm:partition=..."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what it would fetch, compute and need, and stop")
    ] = False,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help="whose hours --dry-run tells; H100 by default")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="what --dry-run says, as JSON; - for standard output"),
    ] = None,
) -> None:
    """Execute CHAPTER into notebooks, one a combination of the values given, and a page that compares them.

    Values are separated by commas: -p seed=0,1,2 -p gain=1,2 makes six notebooks. A comma inside brackets or
    inside the options of a corpus does not separate; a parameter that is given twice has the values of both.
    A model, text, requests or layout that names a file or folder from here is found from the notebook too.
    Nothing in the checkout changes but what git ignores: notebooks and comparison.md go to --out, rows to
    $KEMEM_STORE (.kemem).

    With --on the rows are computed first, by several processes at once; what several commands ask for at a time is
    computed once. With --dry-run nothing is run: a table says which rows are missing, what they take and on which
    formulae that rests.
    """
    at_least(1, batch_size=batch_size)
    from kemem.book import parameters, places

    root = places.checkout()
    source = places.chapter(root, chapter)
    known = parameters.declared(source)
    given = values(parameter or [])
    for name, value in (("scale", scale), ("device", device), ("dtype", dtype), ("batch_size", batch_size)):
        if value is not None and name in given:
            raise BadInput(f"expected {name} once; got it as an option and with -p; drop one of them.")
        if value is not None:
            given[name] = [value]
    chosen = combinations(given)
    checked = [parameters.check(known, each) for each in chosen]
    if not dry_run and (card is not None or json_file is not None):
        option = "--json" if card is None else "--card"
        raise BadInput(f"expected {option} with --dry-run; got it without; add --dry-run or drop it.")
    if dry_run:
        check_json(json_file)
        forecasting.dry_run(root, source.stem, checked, card, json_file)
        return
    folder = _folder(root, source.stem, out)
    if on is not None:
        from kemem.book import sweep

        failures = sweep.sweep(root, source.stem.split("_")[0], checked, sweep.place(on))
        if failures:
            for line in failures:
                note(line)
            raise typer.Exit(1)
    try:
        from kemem.book.run import execute
    except ImportError as error:
        raise BadInput(
            f"a chapter needs the package {error.name}, which is not installed; run `make setup`."
        ) from None
    from kemem.cli.comparison import page

    executions = []
    for number, each in enumerate(chosen, 1):
        target = folder / f"{file_name(source.stem, each)}.ipynb"
        note(f"chapter {source.stem} ({number} of {len(chosen)}) {_words(each)}".rstrip() + " ...")
        done = execute(source, target, parameters=each)
        executions.append((each, target, done))
        note(
            f"chapter {source.stem}: "
            + (f"failed in {done.error}" if done.error else f"{done.seconds:.0f} s")
        )
    comparison = folder / "comparison.md"
    page(comparison, source.stem, executions)
    for _, target, done in executions:
        print(target if done.passed else target.with_suffix(".failed.ipynb"))
    print(comparison)
    failures = [done.error for *_, done in executions if done.error]
    if failures:
        raise typer.Exit(2 if all(re.match(r"cell \d+: BadInput: ", error) for error in failures) else 1)


def _folder(root: Path, stem: str, out: Path | None) -> Path:
    """Where the notebooks go. Refuses the tracked part of the checkout."""
    built = root / "_build"
    folder = built / "runs" / stem if out is None else out.expanduser().resolve()
    if folder.is_relative_to(root) and not folder.is_relative_to(built):
        raise BadInput(f"expected --out outside the checkout or below {built}; got {out}; choose another.")
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"expected --out to be a folder; got the file {out}; name a folder.")
    return folder


def values(texts: list[str]) -> dict[str, list[Any]]:
    """`["seed=0,1", "corpus=world"]` -> {"seed": [0, 1], "corpus": ["world"]}.

    Refused: what is not name=value, and a value given twice.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        name = name.strip()
        pieces = _pieces(name, rest)
        if not name.isidentifier() or not equals or not all(pieces):
            raise BadInput(f"expected -p name=value, or name=value,value; got {text!r}; correct it.")
        for value in (_value(name, piece) for piece in pieces):
            if any(value == other and type(value) is type(other) for other in found.setdefault(name, [])):
                raise BadInput(f"expected each value of {name} once; got {value!r} twice; drop one.")
            found[name].append(value)
    return found


def _pieces(name: str, text: str) -> list[str]:
    """A text cut at its commas: not at those inside brackets, nor at those inside the options of a corpus."""
    if name in CORPORA:
        return [piece.strip() for piece in NEXT_CORPUS.split(text)]
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


def _value(name: str, text: str) -> Any:
    """A number, list, truth value or None where it is written as one, else the text itself."""
    if text in ("None", "none", "null"):
        return None
    if name in PLACES and Path(text).expanduser().exists():
        return str(Path(text).expanduser().absolute())  # the notebook runs in another folder
    if name in WORDS:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def combinations(given: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every way to take one value of each parameter, the last one varying fastest."""
    return [dict(zip(given, taken, strict=True)) for taken in itertools.product(*given.values())]


def file_name(stem: str, given: dict[str, Any]) -> str:
    """The name of a combination's notebook: readable, and another one for every other combination."""

    def word(value: Any) -> str:
        text = str(value)
        plain = re.sub(r"[^\w.-]+", "-", text).strip("-")
        if plain == text and len(text) <= 40:
            return text
        return f"{plain[:30]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    return "_".join([stem, *(f"{name}-{word(value)}" for name, value in given.items())])


def _words(given: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in given.items())
