"""`docstrings`: English technical prose that is on every machine that can run the book.

The docstrings of modules, classes and functions of the scientific packages the book stands on, read from
their source files; nothing is imported. Packages are natural domains: `docstrings:scipy`.
"""

import ast
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from kemem.errors import BadInput

PACKAGES = ("numpy", "scipy", "sympy", "pandas", "networkx", "matplotlib", "torch", "transformers")
SHORTEST = 200  # characters: what is not longer is rarely prose

# Comments and string literals, each swallowed whole, so that a quote inside one never opens another.
_LITERAL = re.compile(
    r"#[^\n]*"
    r'|"""(?:[^"\\]++|\\.|"(?!""))*+"""'
    r"|'''(?:[^'\\]++|\\.|'(?!''))*+'''"
    r'|"(?:[^"\\\n]++|\\.)*+"'
    r"|'(?:[^'\\\n]++|\\.)*+'",
    re.DOTALL,
)
_PREFIX = re.compile(r"[ \t]*[rRuU]?")
_END_OF_STATEMENT = re.compile(r"[ \t]*(?:[\n#;]|\Z)")
_END_OF_HEADER = re.compile(r":[ \t]*(?:#.*)?$")
_DEFINITION = re.compile(r"(?:async[ \t]+def|def|class)\b")


def folder(package: str) -> Path:
    """Where the source of a package lies; refused where it is not installed or not on the list."""
    if package not in PACKAGES:
        raise BadInput(f"docstrings reads the packages {', '.join(PACKAGES)}; got {package!r}.")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise BadInput(
            f"docstrings needs the package {package}, which is not installed; "
            f"pip install {package}, or name those to read, as in docstrings:numpy,torch."
        )
    return Path(found.submodule_search_locations[0])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package: with other versions the text is another."""
    return {package: importlib.metadata.version(package) for package in packages}


def texts(packages: Sequence[str] = PACKAGES) -> Iterator[str]:
    """Docstrings over 200 characters, without indentation or duplicates, in order of package, file and line.

    Folders called `tests` are left out: some distributions of the same version come without them.
    """
    seen: set[str] = set()
    for package in packages:
        root = folder(package)
        inside = {file: file.relative_to(root).parts for file in root.rglob("*.py")}
        for file in sorted(inside, key=inside.__getitem__):
            if "tests" in inside[file]:
                continue
            for text in map(cleaned, literals(file.read_bytes())):
                if len(text) > SHORTEST and text not in seen:
                    seen.add(text)
                    yield text


def literals(source: bytes) -> Iterator[str]:
    """Long docstrings of a source file as they stand there, indented.

    Found by looking at the text instead of parsing it with `ast`, which takes ten times as long (half a
    minute for 190 MB of source) and depends on the syntax that the running Python knows. A docstring is here
    a literal in triple quotes that begins a line, is a statement, and is the first one of a file or of the
    body of a class or function.
    """
    try:
        code = source.decode("utf-8-sig")
        code.encode()
    except UnicodeError:
        return
    code = code.replace("\r\n", "\n")
    for match in _LITERAL.finditer(code):
        start, end = match.span()
        if end - start <= SHORTEST or code[start : start + 3] not in ('"""', "'''"):
            continue
        if not _END_OF_STATEMENT.match(code, end) or not _begins_body(code, start):
            continue
        text = match.group()
        if "\\" not in text or code[start - 1 : start] in ("r", "R"):
            yield text[3:-3]
        elif (value := _value(text)) is not None:
            yield value


def _begins_body(code: str, start: int) -> bool:
    """Whether the literal at `start` is the first statement of the file or, as indented, of a definition."""
    line_start = code.rfind("\n", 0, start) + 1
    prefix = code[line_start:start]
    if not _PREFIX.fullmatch(prefix):
        return False
    indent = len(prefix) - len(prefix.lstrip(" \t"))
    end, nearest = line_start - 1, True
    while end > 0:
        begin = code.rfind("\n", 0, end) + 1
        line, end = code[begin:end], begin - 1
        body = line.strip()
        if not body or body.startswith("#"):
            continue
        if nearest and not _END_OF_HEADER.search(line):
            return False
        nearest = False
        # a header may span lines: it begins at the nearest one indented less, closing brackets aside
        if len(line) - len(line.lstrip(" \t")) < indent and body[0] not in ")]}":
            return bool(_DEFINITION.match(body))
    return nearest and indent == 0


def _value(literal: str) -> str | None:
    """What a literal with escapes stands for; None where it is not text that can be written as UTF-8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            value = ast.literal_eval(literal)
        value.encode()
    except (SyntaxError, UnicodeError):
        return None
    return value


def cleaned(text: str) -> str:
    """The text without the indentation of its lines, as in PEP 257, the same on every version of Python."""
    first, *others = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in others if line.strip(" ")), default=0)
    return "\n".join([first.lstrip(" "), *(line[margin:].rstrip(" ") for line in others)]).strip()
