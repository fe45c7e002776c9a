"""The ledger of claims: complete, judged by its rules and nothing else, cited, and not bypassed by numbers in prose."""

import json
import math
import re
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from docutils import nodes
from scipy import stats
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from kemem.book import claims_ext, places
from kemem.book.status import documents
from kemem.claims import CLAIMS, VERDICTS, scales, shown, verdict, verdicts
from kemem.claims.rules import FALLS, RISES, Agreement, Order, Sign, Trend, Value, judge
from kemem.cli import main
from kemem.runs import Store, digest
from kemem.studies import decay, findings, stages
from kemem.studies.evidence import EVIDENCE, Evidence

ROOT = Path(__file__).resolve().parents[1]
NUMBERED = {"entropy": 26, "das": 12, "memit": 19}  # as many as the reference sheets number
REVIEWS = {"parallel-adapters", "unit-importance", "isolation-general", "elle-prompts", "similar-facts"}
every_claim = pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))


# ---------------------------------------------------------------------- the entries
def test_every_numbered_claim_is_entered_once_and_in_order():
    groups: dict[str, list[str]] = {}
    for name in CLAIMS:
        group, _, rest = name.partition(".")
        groups.setdefault(group, []).append(rest)
    assert {g: ids for g, ids in groups.items() if g != "review"} == {
        group: [str(n) for n in range(1, count + 1)] for group, count in NUMBERED.items()
    }
    assert set(groups["review"]) >= REVIEWS


def test_no_id_stands_twice():
    from kemem.claims import das, entropy, memit, reviews

    entered = [claim.id for file in (entropy, das, memit, reviews) for claim in file.CLAIMS]
    assert len(entered) == len(set(entered)) == len(CLAIMS)


@every_claim
def test_an_entry_is_complete(claim):
    assert claim.part == {"entropy": 1, "das": 2, "memit": 3}.get(claim.id.split(".")[0], claim.part)
    assert claim.part in (1, 2, 3) and claim.where and claim.quantity and str(claim.rule)
    assert f"{{{claim.paper}," in (ROOT / "references.bib").read_text(encoding="utf-8")
    one_sentence = re.fullmatch(r"[A-Z][^.!?]*\.", re.sub(r"\d\.\d", "", claim.statement))
    assert one_sentence and 30 < len(claim.statement) < 250, claim.statement
    tested = claim.id in EVIDENCE
    assert bool(claim.chapters) == tested, "a claim with evidence is shown in a chapter, and no other is"
    assert bool(claim.needs) != tested, "a claim without evidence says what a test would take"
    for label, value in claim.published.items():
        values = value if isinstance(value, tuple) else (value,)
        assert label and values and all(math.isfinite(v) for v in values), label


def test_evidence_is_for_claims_that_exist():
    assert EVIDENCE.keys() <= CLAIMS.keys()


# an axis range is no value
ORDERED = [
    c for c in CLAIMS.values() if isinstance(c.rule, Order) and not any("axis" in k for k in c.published)
]


@pytest.mark.parametrize("claim", ORDERED, ids=lambda c: c.id)
def test_published_numbers_are_in_the_order_that_is_claimed(claim):
    """A slip in a typed table would show here."""
    values = [
        v for value in claim.published.values() for v in (value if isinstance(value, tuple) else (value,))
    ]
    assert len(values) > 3 and all((b - a) * claim.rule.direction > 0 for a, b in pairwise(values)), values


# ---------------------------------------------------------------------- the rules
def interval(values):
    """scipy's own, without our arithmetic."""
    found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return float(found.low), float(found.high)


BELOW, ABOVE, BOTH = (-1.0, -1.2, -0.9), (0.5, 0.7, 0.6), (-1.0, 0.2, 0.9)


@pytest.mark.parametrize(
    ("rule", "series", "said"),
    [
        (Sign(FALLS), {"a": BELOW}, "holds"),
        (Sign(RISES), {"a": BELOW}, "fails"),
        (Sign(FALLS), {"a": BOTH}, "undecided"),
        (Sign(FALLS), {"a": BELOW, "b": BOTH}, "undecided"),
        (Sign(FALLS), {"a": BELOW, "b": BOTH, "c": ABOVE}, "fails"),
        (Sign(FALLS), {"a": (0.0, 0.0, 0.0)}, "undecided"),
        (Order(FALLS), {"s": (5.0, 5.1, 4.9), "t": (4.0, 4.2, 4.1), "u": (3.0, 3.1, 2.8)}, "holds"),
        (Order(RISES), {"s": (5.0, 5.1, 4.9), "t": (4.0, 4.2, 4.1)}, "fails"),
        (Order(FALLS), {"s": (5.0, 5.1, 4.9), "t": (4.0, 4.2, 4.1), "u": (4.1, 4.0, 4.1)}, "undecided"),
        # the seeds differ far more than the stages do: paired by seed it is clear
        (Order(FALLS), {"s": (1.0, 11.0, 21.0), "t": (0.5, 10.4, 20.6)}, "holds"),
        (Trend(FALLS), {"s": (4.0, 4.0, 4.0), "t": (3.0, 3.1, 2.0), "u": (2.0, 3.0, 1.0)}, "holds"),
        (Trend(RISES), {"s": (4.0, 4.0, 4.0), "t": (3.0, 3.1, 2.0), "u": (2.0, 3.0, 1.0)}, "fails"),
        (Trend(RISES), {"s": (1.0, 1.0, 1.0), "t": (1.0, 1.0, 1.0)}, "undecided"),
        (Value(-10.0, 5.0), {"a": (-9.0, -10.5, -11.0)}, "holds"),
        (Value(-10.0, 5.0), {"a": (-1.0, -1.5, -0.5)}, "fails"),
        (Value(-10.0, 5.0), {"a": (-21.0, -20.0, -20.5)}, "fails"),
        (Value(-10.0, 5.0), {"a": (-9.0, -2.0, -15.0)}, "undecided"),
        (Agreement(), {"a": BELOW, "b": (-0.1, -0.12, -0.11)}, "holds"),
        (Agreement(), {"a": ABOVE, "b": ABOVE}, "holds"),
        (Agreement(), {"a": BELOW, "b": ABOVE}, "fails"),
        (Agreement(), {"a": BOTH, "b": ABOVE}, "undecided"),
    ],
)  # fmt: skip
def test_a_rule_judges(rule, series, said):
    assert judge(rule, series).verdict == said
    for seeds in (1, 2):
        assert judge(rule, {name: values[:seeds] for name, values in series.items()}).verdict == "undecided"


def test_effect_and_interval_are_those_of_the_contrast_that_decided():
    series = {"clear": (-5.0, -5.1, -4.9), "close": (-1.0, -1.3, -0.9), "far": (-9.0, -9.5, -9.2)}
    found = judge(Sign(FALLS), series)
    assert (found.contrast, found.contrasts) == ("close", 3)
    assert (found.found.low, found.found.high) == pytest.approx(interval(series["close"]))
    assert found.found.mean == pytest.approx(sum(series["close"]) / 3)
    failing = judge(Sign(FALLS), series | {"wrong": (0.1, 0.2, 0.15), "worse": (2.0, 2.1, 2.2), "wide": BOTH})
    assert (failing.verdict, failing.contrast) == ("fails", "worse")
    ordered = judge(Order(RISES), {"s": (1.0, 2.0, 3.5), "t": (2.0, 3.1, 4.4)})
    assert ordered.contrast == "s to t"
    assert (ordered.found.low, ordered.found.high) == pytest.approx(interval([1.0, 1.1, 0.9]))


def test_ranks_are_spearmans():
    series = {"s": (4.0, 1.0, 2.0), "t": (3.0, 2.0, 5.0), "u": (3.5, 3.0, 1.0)}
    (contrast,) = Trend(RISES).contrasts(series)
    assert contrast.values == pytest.approx([-0.5, 1.0, -0.5])


@pytest.mark.parametrize("values", [BELOW, ABOVE, BOTH, (-0.1, -0.2, -0.15, -0.3)])
def test_the_sign_rule_is_that_of_chapter_03(values):
    assert judge(Sign(FALLS), {"a": values}).verdict == findings.falls(findings.change(values))


def test_a_verdict_says_what_it_rests_on():
    claim = CLAIMS["entropy.4"]
    found = verdict(
        claim, Evidence("an arm", {"after": BELOW}, "nats", ("d1", "d2", "d3"), "a note"), "laptop"
    )
    assert (found.claim, found.scale, found.verdict) == ("entropy.4", "laptop", "holds")
    assert (found.on, found.unit, found.seeds, found.rows) == ("an arm", "nats", 3, ("d1", "d2", "d3"))
    assert (found.low, found.high) == pytest.approx(interval(BELOW)) and found.note == "a note"
    none = verdict(CLAIMS["memit.8"], None, "laptop")
    assert none.verdict == "not tested" and none.note == CLAIMS["memit.8"].needs and none.effect is None


# ---------------------------------------------------------------------- from rows to verdicts
def points(seed: float, slope: float) -> list[dict]:
    """A made-up path of the sweep with 3 layers, each falling by a slope of its own, the last most."""
    found = []
    for step in range(0, 1001, 50):
        layers = [5.0 + 0.01 * seed + slope * (i + 1) * (1 + 0.01 * seed) * step / 1000 for i in range(3)]
        attention = [2.0 * math.exp(-step / 200) + 0.001 * seed * step / 1000 for _ in range(3)]
        found.append({
            "step": step, "layers": layers, "entropy": math.fsum(layers), "attention": attention,
            "next_token": 6.0 - 3.0 * step / 1000 - 0.02 * seed * step / 1000,
        })  # fmt: skip
    return found


def write_arm(root: Path, name: str, slope: float, seeds=(0, 1, 2)) -> None:
    folder = root / "records" / "laptop"
    store = Store(folder, folder, mode="record")
    sizes, setup = decay.SCALES["laptop"], decay.arms("laptop")[name]
    for seed in seeds:
        arm = decay.Arm(setup.with_(seed=seed), sizes.points, seed=seed)
        values = {"points": points(seed, slope)}
        store.row(decay.STUDY, decay.VERSION, arm, lambda _, v=values: v, recorded=True)


def judged(root: Path, claim: str) -> list:
    return [v for v in verdicts(root, "laptop") if v.claim == claim]


def test_another_number_in_a_row_is_another_verdict(tmp_path):
    for place, slope, said in (
        ("falls", -1.0, "holds"),
        ("rises", 1.0, "fails"),
        ("stays", 0.0, "undecided"),
    ):
        write_arm(tmp_path / place, "base", slope)
        for claim in ("entropy.1", "entropy.2"):
            (found,) = judged(tmp_path / place, claim)
            assert (found.verdict, found.seeds, len(found.rows)) == (said, 3, 3), (place, claim)
    (first,) = judged(tmp_path / "falls", "entropy.1")
    steps = [-6.0 * 0.25 * (1 + 0.01 * seed) for seed in range(3)]  # 50 to 75 %: the least of the three
    assert (first.low, first.high) == pytest.approx(interval(steps)) and first.contrasts == 3
    for claim in ("entropy.3", "entropy.4"):
        assert judged(tmp_path / "rises", claim)[0].verdict == "holds"


def test_the_arm_that_was_fixed_beforehand_comes_first_or_none(tmp_path):
    write_arm(tmp_path, "weight decay x 4", -1.0)
    (found,) = judged(tmp_path, "entropy.1")
    assert found.verdict == "not tested" and "rows of scale laptop" in found.note
    write_arm(tmp_path, "base", 1.0)
    both = judged(tmp_path, "entropy.1")
    assert [v.on for v in both] == ["sweep: base", "sweep: weight decay x 4"]
    assert [v.verdict for v in both] == ["fails", "holds"]


def test_a_missing_seed_is_not_passed_over(tmp_path):
    write_arm(tmp_path, "base", -1.0, seeds=(0, 2))
    assert judged(tmp_path, "entropy.1")[0].verdict == "not tested"


@pytest.mark.parametrize(("claim", "names"), [("entropy.13", "texts"), ("entropy.14", "readings")])
def test_agreement_over_texts_and_readings(tmp_path, claim, names):
    def write(root: Path, seeds, odd: float) -> None:
        folder = root / "records" / "laptop"
        store = Store(folder, folder, mode="record")
        for seed in seeds:
            about = stages.subject("laptop", seed=seed)
            asked = {
                "texts": {name: about.settings(name) for name in about.corpora},
                "readings": {name: about.settings(coefficient=name) for name in stages.readings(about)},
            }[names]
            for i, settings in enumerate(asked.values()):
                slope = (odd if i == len(asked) - 1 else -1.0) * (1 + 0.1 * seed)
                values = {"stages": [{"entropy": 9 + slope * k} for k in range(len(about.revisions))]}
                store.row(stages.STUDY, stages.VERSION, settings, lambda _, v=values: v)

    for place, seeds, odd, said in (
        ("one", (0,), -1.0, "undecided"), ("same", (0, 1, 2), -0.5, "holds"), ("other", (0, 1, 2), 0.5, "fails"),
    ):  # fmt: skip
        write(tmp_path / place, seeds, odd)
        (found,) = judged(tmp_path / place, claim)
        assert (found.verdict, found.seeds) == (said, len(seeds)), place


def test_without_records_nothing_is_tested(tmp_path):
    assert scales(tmp_path) == []
    assert {v.verdict for v in verdicts(tmp_path, "gpu")} == {"not tested"}


def test_committed_rows_decide_what_has_evidence():
    """Every verdict has its rule, and rows that are there; a study that changed its settings shows here."""
    known = {digest(d["study"], d["version"], d["settings"]) for d in documents(ROOT / "records" / "laptop")}
    found = verdicts(ROOT, "laptop")
    assert {v.claim for v in found} == set(CLAIMS) and {v.verdict for v in found} <= set(VERDICTS)
    for v in found:
        if v.claim in EVIDENCE:
            assert v.verdict != "not tested" and v.rows and set(v.rows) <= known, v
            assert v.effect is not None and v.contrast and v.on
            assert v.verdict == "undecided" or (v.seeds >= 3 and v.low is not None)
        else:
            assert v.verdict == "not tested" and v.note == CLAIMS[v.claim].needs


def test_a_committed_verdict_by_hand():
    """Claim 4 on the base arm, from the files themselves."""
    base = decay.SCALES["laptop"].base
    changes = []
    for document in documents(ROOT / "records" / "laptop"):
        if document["study"] == "decay":
            setup = {k: v for k, v in document["settings"]["setup"].items() if k != "seed"}
            if setup == {k: v for k, v in json.loads(json.dumps(vars(base))).items() if k != "seed"}:
                path = document["values"]["points"]
                start = next(p for p in path if p["step"] == 0.2 * path[-1]["step"])
                changes.append(path[-1]["next_token"] - start["next_token"])
    (found, *_) = judged(ROOT, "entropy.4")
    assert len(changes) == found.seeds == 3
    assert (found.low, found.high) == pytest.approx(interval(changes))
    assert found.verdict == ("holds" if interval(changes)[1] < 0 else "undecided")


# ---------------------------------------------------------------------- the page, badges, the command
def test_the_page_has_every_claim_once():
    page = (ROOT / "pages" / "claims.md").read_text(encoding="utf-8")
    groups = re.findall(r"^```\{claims\} (\w+)$", page, re.MULTILINE)
    rows = [re.findall(r"^\| (\w+\.[\w-]+) \|", claims_ext.table(group), re.MULTILINE) for group in groups]
    assert [name for group in rows for name in group] == list(CLAIMS)
    for word in VERDICTS:
        assert f"kemem-claim-{word.replace(' ', '-')}" in page
        assert f".kemem-claim-{word.replace(' ', '-')} {{" in (ROOT / "static" / "kemem.css").read_text()


def test_the_table_says_what_was_found():
    table = claims_ext.table("entropy")
    (row,) = re.findall(r"^\| entropy\.5 \|.*$", table, re.MULTILINE)
    assert "25.2, 24.8, 21.4, 18.8" in row
    (row,) = re.findall(r"^\| entropy\.15 \|.*$", table, re.MULTILINE)
    assert "not tested" in row and CLAIMS["entropy.15"].needs in row
    (row,) = re.findall(r"^\| entropy\.4 \|.*$", table, re.MULTILINE)
    v = judged(ROOT, "entropy.4")[0]
    assert shown.number(v.effect) in row and v.verdict in row and "3 seeds" in row
    assert shown.number(-0.0001234) == "−1.2e−04" and shown.number(0.5) == "+0.500"


def build(folder: Path, text: str) -> tuple[int, str, str]:
    """A book of one chapter and the ledger, built strictly: exit status, warnings, the chapter's page."""
    (folder / "pages").mkdir(parents=True)
    ledger = "# Claims\n\n```{claims} entropy\n```\n"
    (folder / "pages" / "claims.md").write_text(ledger, encoding="utf-8")
    index = f"# A chapter\n\n{text}\n\n```{{toctree}}\npages/claims\n```\n"
    (folder / "index.md").write_text(index, encoding="utf-8")
    (folder / "conf.py").write_text(
        "extensions = ['myst_parser', 'kemem.book.claims_ext']\nmyst_enable_extensions = ['attrs_inline']\n"
    )
    # what a build registers is forgotten after it, or the next one in this process would be warned of it
    with (folder / "warnings.txt").open("w+") as said, warnings.catch_warnings(), docutils_namespace():
        warnings.simplefilter("ignore")
        app = Sphinx(folder, folder, folder / "out", folder / "trees", "html", status=None, warning=said)
        app.build()
        said.seek(0)
        lines = said.read()
    return (
        app.statuscode or app._warncount,
        lines,
        (folder / "out" / "index.html").read_text(encoding="utf-8"),
    )


def test_a_badge_links_to_its_row(tmp_path):
    status, said, page = build(tmp_path, "Another family {claim}`entropy.15`.")
    assert status == 0, said
    (link,) = re.findall(r'<a [^>]*href="pages/claims.html#claim-entropy-15"[^>]*>.*?</a>', page)
    assert "entropy.15 – not tested" in link and "kemem-claim-not-tested" in link
    assert 'title="Knowledge entropy tends to fall' in link
    ledger = (tmp_path / "out" / "pages" / "claims.html").read_text(encoding="utf-8")
    assert ledger.count('id="claim-entropy-15"') == 1


def test_an_unknown_claim_is_a_warning(tmp_path):
    status, said, _ = build(tmp_path, "It does not get easier {claim}`entropy.99`.")
    assert status and "no claim is called 'entropy.99'; known are entropy.1, " in said


def test_a_badge_shows_the_scale_of_the_book_if_it_has_rows(monkeypatch):
    found = {
        scale: {"das.1": [verdict(CLAIMS["das.1"], evidence, scale)]}
        for scale, evidence in (("laptop", None), ("gpu", Evidence("m", {"a": ABOVE}, "points", ("d",))))
    }
    monkeypatch.setattr(claims_ext, "found", lambda: found)
    for scale, said in (("gpu", "holds"), ("laptop", "not tested"), ("smoke", "not tested")):
        monkeypatch.setenv("KEMEM_BOOK_SCALE", scale)
        assert claims_ext.shown("das.1").verdict == said


def test_badges_are_left_as_text_where_there_are_no_links():
    badge, messages = claims_ext.claim_role("claim", "", "entropy.1", 1, None)
    assert (
        messages == []
        and isinstance(badge[0], nodes.inline | nodes.Inline)
        and badge[0].astext() == "entropy.1"
    )


def test_the_command_lists_verdicts(capsys, tmp_path):
    file = tmp_path / "claims.json"
    assert main(["claims", "--part", "1", "--scale", "laptop", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert {row["claim"] for row in rows} == {c.id for c in CLAIMS.values() if c.part == 1}
    (first, *_) = [row for row in rows if row["claim"] == "entropy.4"]
    v = judged(ROOT, "entropy.4")[0]
    assert (first["verdict"], first["effect"], first["rows"]) == (v.verdict, v.effect, list(v.rows))
    assert first["statement"] == CLAIMS["entropy.4"].statement and first["rule"] == "sign: below 0"
    shown = capsys.readouterr()
    assert "entropy.4" in shown.out and "not tested" in shown.out.splitlines()[-1] and not shown.err
    assert main(["claims", "--json", "-"]) == 0
    assert {row["claim"] for row in json.loads(capsys.readouterr().out)} == set(CLAIMS)


def test_the_command_refuses_in_one_line_outside_a_checkout(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(places, "__file__", str(tmp_path / "site-packages" / "kemem" / "book" / "places.py"))
    assert main(["claims"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kemem: ") and "checkout" in line


# ---------------------------------------------------------------------- the chapters
CHAPTERS = places.chapters(ROOT)
IDS = [path.stem for path in CHAPTERS]


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if c.chapters], ids=lambda c: c.id)
def test_the_chapters_of_a_claim_cite_it(claim):
    for stem in claim.chapters:
        assert stem in IDS, f"no chapter is called {stem}"
        source = places.chapter(ROOT, stem).read_text(encoding="utf-8")
        assert f"{{claim}}`{claim.id}`" in source, f"{stem} does not cite {claim.id}"


@pytest.mark.parametrize("source", CHAPTERS, ids=IDS)
def test_chapters_cite_claims_that_exist(source):
    cited = re.findall(r"\{claim\}`([^`]*)`", source.read_text(encoding="utf-8"))
    assert set(cited) <= CLAIMS.keys()


# A digit in prose is either read from a row ({result}), or stands here with the reason why it is none of ours.
ALLOWED = {
    r"\*\*Reading time\.\*\* About \d+ minutes\.": "a reader's time, not measured",
    r"(?:[Ss]ections?|[Aa]lgorithm|[Ff]igures?|[Aa]ppendix|[Aa]ppendices|[Ee]quations?|[Tt]ables?) "
    r"(?:(?:[A-Z]\.)?[\d.]*\d(?:, | and | to )?)+": "a place in a paper",
    r"\bpart [123]\b": "a part of this book",
    r"^\| [123] \|": "a part of this book",
    r"Python 3\.11": "a requirement",
    r"CC BY 4\.0": "a name",
    r"OLMo-1B|\b1B\b|\b7B\b": "a name",
    r"\bC4\b|GPT-2": "a name",
    r"exactly 0\b|to sum 1,|the second 0:|bounds: 0,|axis from 0\b|ones to 0,": "a definition, exact",
    r"\b90, 5 and 5 in a hundred": "a definition: how texts are split",
    r"a global norm of 1\.": "a definition: the recipe",
    r"about 16 of these time constants": "the paper's setting",
    r"4 million tokens|738 thousand steps|118k, 369k, 554k, 738k steps: 16, 50, 75, 100 %": "the paper's setting",
    r"from 0 to 100 %": "a definition: shares of the schedule",
    r"16 % of the schedule|four, from 16 % on": "the paper's setting",
    r"143\.6 to 144\.0": "the paper's axis",
    r"8,192 memories": "the paper's setting",
    r"2,048 texts": "the paper's setting",
    r"1839 to 1929": "when the novels were printed",
    r"20 % of the schedule": "a definition: where late begins",
    r"a 95 % interval": "a definition: the rule",
    r"\b70 of the first kind and 60 of the second|\| 130, written by GPT-4 \||\| 76 of 128 \|": "the paper's setting",
    r"\b0 would be certainty|close to 0\.|is 1 when everything|, 0 at best;": "a bound, exact",
    r"reports 0\.94 and −0\.96": "the paper's numbers",
    r"Step 450 is the fifteenth|In 900 steps the ten slots": "the solution of an exercise",
    r"^Above 0\.9, although": "the solution of an exercise, which its cell asserts",
}
OF_A_LINE = (r"\{[\w:-]+\}`[^`]*`", r"`[^`]*`", r"\$[^$]+\$", r"\]\([^)]*\)")  # roles, code, math, links


def markdown(source: str) -> str:
    """The Markdown cells of a chapter in percent format."""
    kept, inside = [], False
    for line in source.splitlines():
        if line.startswith("# %%"):
            inside = "[markdown]" in line
            kept.append("")
        elif inside and line.startswith("#"):
            kept.append(line[2:])
    return "\n".join(kept)


def prose(text: str) -> str:
    """What remains without math, code, roles, links, directives and their options, labels, numbers of headings.

    The text inside an admonition is prose. That of an exercise is not: its numbers are made up for it.
    """
    kept, until = [], ""
    for line in text.splitlines():
        fence = re.match(r"(`{3,}|:{3,})(\{?)(\w*)", line)
        if until:
            until = "" if line.rstrip() == until else until
        elif fence:
            marks, directive, word = fence.groups()
            until = marks if word and (not directive or word in ("math", "exercise")) else ""
        elif not re.match(r":[\w-]+:|\([\w:.-]+\)=", line):
            kept.append(re.sub(r"^#+ (?:Equation |Figure |Table )?[\d.]+", "", line))
    left = "\n".join(kept)
    for pattern in OF_A_LINE:
        left = re.sub(pattern, " ", left)
    return left


def bypassing(text: str) -> list[str]:
    """Lines with a digit that nothing allows, with the digit marked."""
    left = prose(text)
    for pattern in ALLOWED:
        left = re.sub(pattern, " ", left, flags=re.MULTILINE)
    return [line for line in left.splitlines() if re.search(r"\d", line)]


@pytest.mark.parametrize("source", CHAPTERS, ids=IDS)
def test_no_number_in_prose_bypasses_the_rows(source):
    found = bypassing(markdown(source.read_text(encoding="utf-8")))
    assert not found, "quote a row with {result}, or allow it with a reason:\n" + "\n".join(found)


def test_every_allowance_is_still_needed():
    text = "\n".join(prose(markdown(path.read_text(encoding="utf-8"))) for path in CHAPTERS)
    idle = [pattern for pattern in ALLOWED if not re.search(pattern, text, re.MULTILINE)]
    assert not idle, idle


def test_the_check_sees_a_digit_in_prose_and_nowhere_else():
    clean = """
(ch-7)=
# Equation 7
:::{admonition} Note
:class: t3
See {result}`a.b|.2f`, {cite}`kim2025knowledge`, `c[3]`, $x_4$ and [this](page5.html).
```{math}
:label: eq-6
x = 7
```
```bash
head -8
```
Later.
```{exercise}
:label: ex-9
Think of 3 memories.
```
:::
"""
    assert bypassing(clean) == []
    for planted, seen in (
        ("Later.", "It fell by 3.1 nats."), ("See", "Here are 17:"), ("Later.", "| a | 5 |"),
    ):  # fmt: skip
        (line,) = bypassing(clean.replace(planted, seen))
        assert line.startswith(seen)
