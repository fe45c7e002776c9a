"""The rendered pages, as a reader's browser gets them. `make test-html` builds them and says where they are."""

import json
import os
import re
from copy import copy
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag

from kemem.book import places

ROOT = Path(__file__).resolve().parents[1]
HTML = Path(os.environ.get("KEMEM_HTML", ROOT / "_build" / "html"))
CHAPTERS = [path.stem for path in places.chapters(ROOT)]

pytestmark = pytest.mark.skipif(
    not (HTML / "index.html").is_file(),
    reason="no rendered book at $KEMEM_HTML or _build/html: run `make html`",
)


@cache
def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def article(path: Path) -> Tag:
    found = soup(path).select_one("article.bd-article")
    assert isinstance(found, Tag), f"{path.name} has no article"
    return found


def pages() -> list[Path]:
    """Pages with text of ours: no redirect, no index, no source view."""
    if not HTML.is_dir():
        return []
    found = [p for folder in ("chapters", "pages") for p in sorted((HTML / folder).rglob("*.html"))]
    return [p for p in found if "_modules" not in p.parts]


def name(path: Path) -> str:
    return str(path.relative_to(HTML))


every_page = pytest.mark.parametrize("path", pages(), ids=name)


def test_all_pages_are_there():
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert listed and {f"{page}.html" for page in listed} == {name(p) for p in pages()}
    assert f"{listed[0]}.html" in (HTML / "index.html").read_text(encoding="utf-8")


@every_page
def test_every_image_says_what_it_shows(path):
    for image in article(path).find_all("img"):
        text = str(image.get("alt", ""))
        assert len(text) > 20 and not re.search(r"[0-9a-f]{16}|\.(png|svg|jpe?g)|_images", text), (
            f"{image.get('src')}: {text!r}"
        )


@every_page
def test_headings_go_down_one_step_at_a_time(path):
    levels = [int(h.name[1]) for h in article(path).find_all(re.compile(r"^h[1-6]$"))]
    assert levels.count(1) == 1 and levels[0] == 1, levels
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


@every_page
def test_nothing_broke(path):
    page = copy(article(path))
    assert not page.select(".problematic, .system-message")
    for source in page.select(".cell_output .highlight-python"):
        source.extract()  # code that a cell shows on purpose
    outputs = " ".join(output.get_text() for output in page.select(".cell_output"))
    for mark in (
        "Traceback (most recent call last)",
        "np.float64(",
        "np.int64(",
        "tensor(",
        "<Figure",
        "Warning:",
        " at 0x",
    ):
        assert mark not in outputs, f"{mark} in an output"
    assert not re.search(r"(?<![\w.])(nan|inf)(?![\w])", outputs)
    for code in page.select("pre, code, dt.sig"):
        code.extract()
    text = page.get_text() if path.parent.name != "api" else ""
    for mark in ("{result}", "{claim}", "{numref}", "{ref}", "{cite", "{doc}", "```", "**"):
        assert mark not in text, f"{mark} on the page"


def targets(path: Path) -> set[str]:
    return {str(tag[key]) for tag in soup(path).find_all(True) for key in ("id", "name") if tag.get(key)}


@every_page
def test_links_inside_the_book_lead_somewhere(path):
    broken = []
    for link in soup(path).find_all("a", href=True):
        parts = urlsplit(str(link["href"]))
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if target.is_dir():
            target /= "index.html"
        anchor = unquote(parts.fragment) if target.suffix == ".html" else ""
        if not target.is_file() or (anchor and anchor not in targets(target)):
            broken.append(str(link["href"]))
    assert not broken, broken


@every_page
def test_pages_need_no_other_host(path):
    """Scripts, styles, fonts and images come with the book: it reads offline, and tells nobody that it is read."""
    loaded = [
        str(tag.get("src") or tag.get("href"))
        for tag in soup(path).select(
            "script[src], link[rel=stylesheet], link[rel=preload], img[src], iframe[src]"
        )
    ]
    outside = [address for address in loaded if urlsplit(address).netloc]
    assert not outside, outside


@every_page
def test_equations_are_mathml(path):
    for math in article(path).select(".math"):
        assert math.find("math"), f"not converted: {math.get_text()[:60]}"


@pytest.mark.parametrize("stem", CHAPTERS)
def test_the_notebook_can_be_downloaded(stem):
    page = HTML / "chapters" / f"{stem}.html"
    links = [
        str(a["href"])
        for a in soup(page).find_all("a", href=True)
        if str(a["href"]).endswith(f"{stem}.ipynb")
    ]
    assert links, "no download link"
    got = nbformat.read((page.parent / links[0]).resolve(), as_version=4)
    kept = nbformat.read(ROOT / "chapters" / f"{stem}.ipynb", as_version=4)
    assert [c.source for c in got.cells] == [c.source for c in kept.cells]


@pytest.mark.parametrize("stem", CHAPTERS)
def test_every_output_of_a_notebook_is_on_its_page(stem):
    kept = nbformat.read(ROOT / "chapters" / f"{stem}.ipynb", as_version=4)
    page = article(HTML / "chapters" / f"{stem}.html")
    images = sum("image/png" in o.get("data", {}) for c in kept.cells for o in c.get("outputs", []))
    assert len(page.select(".cell_output img, figure img")) == images
    text = " ".join(page.get_text().split())
    for cell in kept.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                line = next((s for s in output.text.splitlines() if s.strip()), "")
                assert " ".join(line.split()) in text, line


def test_numbers_carry_their_origin():
    found = [tag for path in pages() for tag in article(path).select("abbr.kemem-result")]
    quoted = sum(p.read_text(encoding="utf-8").count("{result}`") for p in places.chapters(ROOT))
    assert len(found) == quoted
    for tag in found:
        assert re.search(r"study \w+.*, row [0-9a-f]{16}", str(tag["title"])), tag


def test_the_coverage_page_answers_for_every_part():
    cells = [row.find_all("td") for row in article(HTML / "pages" / "coverage.html").select("tbody tr")]
    assert len(cells) > 120
    for _part, title, where in cells:
        assert where.find("a", href=True) or re.match(r"not (yet|run): ", where.get_text()), title.get_text()


def test_pages_can_be_found_and_shared():
    index = (HTML / "searchindex.js").read_text(encoding="utf-8")
    found = json.loads(index[index.index("{") : index.rindex("}") + 1])
    assert {f"chapters/{stem}" for stem in CHAPTERS} <= set(found["docnames"])
    for stem in CHAPTERS:
        page = soup(HTML / "chapters" / f"{stem}.html")
        title = page.select_one('meta[property="og:title"]')
        assert title and title.get("content")
        assert page.html and page.html.get("lang") == "en"
        assert page.select_one('meta[name="viewport"]')
