"""The data sets that the book uses at paper scale, by short names: `hub:c4`, `hub:dolma`, ...

What is published of each: licence, size, fields. A number that no page states is None. revision is a commit that a
public page shows with the files that are meant; where it is None the commit is resolved when it is read.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One data set. hub: its name there; None where it is not on the hub, then `place` has it and `remedy` the way.

    config, split, field: what is read unless a spec says otherwise. fields: those that matter. listing: a file of it
    with the addresses of its files, {config} filled in. records, bytes: of what is read, as published; size: more
    of it in words. stated: the page that licence and size are from. used: where in the book, and for what.
    """

    name: str
    hub: str | None
    fields: tuple[str, ...]
    licence: str
    used: str
    stated: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    records: int | None = None
    bytes: int | None = None
    size: str = ""
    listing: str | None = None
    place: str = ""
    remedy: str = ""
    note: str = ""


_PAGE = "https://huggingface.co/datasets"
_DOLMA = "62f904059e319271332a35614ea09fbe8650c8fe"
_ENTRIES = (
    Entry(
        "dolma", "allenai/dolma", ("id", "text", "source"), "ODC-BY",
        "chapter 03, entropy; chapters 05 and 07, the text before",
        f"{_PAGE}/allenai/dolma",
        config="v1_5-sample", revision=_DOLMA, listing="urls/{config}.txt",
        size="2.9 TB packed, about 1.9 trillion tokens",
        note="OLMo-1B saw v1_5 (6.4 TB). The very first batch, by index: `dolma-order:`.",
    ),
    Entry(
        "dolma-sample", "allenai/dolma", ("id", "text", "source"), "ODC-BY",
        "chapter 03, entropy on less to fetch",
        f"{_PAGE}/allenai/dolma",
        config="v1_6-sample", revision=_DOLMA, listing="urls/{config}.txt", bytes=16_400_000_000,
        size="packed, about 10 billion tokens",
    ),
    Entry(
        "c4", "allenai/c4", ("text", "timestamp", "url"), "ODC-BY",
        "chapter 03, entropy on other text; chapter 05, continual training",
        "https://huggingface.co/datasets/c4/commit/920e15393295f51a42b0f87e1461ce128935e76f",
        config="en", revision="1588ec454efa1a09f29cd18ddd04fe05fc8653a2", records=364_868_892,
        bytes=828_589_180_707, size="of text; 1,024 files",
    ),
    Entry(
        "pubmed", "MedRAG/pubmed", ("id", "title", "content", "contents", "PMID"), "not stated",
        "chapters 05 and 07, continual training; chapter 03, entropy on other text",
        f"{_PAGE}/MedRAG/pubmed",
        field="content", revision="33da3593d5756bc04c8909f170003c0b14197957", records=23_898_701,
        bytes=70_000_000_000,
        note="Kim et al. name no data set of the hub; these are abstracts of PubMed, one a record, in `content`.",
    ),
    Entry(
        "fictional-knowledge", "kaist-ai/fictional-knowledge",
        ("train_context", "mem_input", "mem_target", "gen_input", "gen_target", "hard_gen_input", "hard_gen_target"),
        "CC-BY-4.0", "chapters 04, 05 and 07, injection and probes",
        f"{_PAGE}/kaist-ai/fictional-knowledge",
        field="train_context", revision="5bb34064ac5bec7fa038a0d87f79aa0f6019df75", records=130,
        note="Without paraphrases: those of Kim et al. 2025 are in their repository, kaistAI/Knowledge-Entropy.",
    ),
    Entry(
        "counterfact", "azhx/counterfact",
        ("case_id", "pararel_idx", "requested_rewrite", "paraphrase_prompts", "neighborhood_prompts",
         "attribute_prompts", "generation_prompts"),
        "not stated; MIT in kmeng01/rome, which it is from", "chapters 12 to 14, requests",
        f"{_PAGE}/azhx/counterfact",
        split="train+test", records=21_919, bytes=12_387_190, size="to fetch",
        note="The 19,728 and 2,191 records of two splits are CounterFact as a whole.",
    ),
    Entry(
        "zsre", None, ("subject", "src", "rephrase", "alt", "answers", "loc", "loc_ans"),
        "not stated", "chapters 13 and 14, requests",
        "https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
        place="https://rome.baulab.info/data/dsets/zsre_mend_eval.json",
        remedy="fetch it and give the path of the file",
        note="In the schema of Mitchell et al. 2022 it is known on no page of the hub.",
    ),
    Entry(
        "wikipedia", "wikimedia/wikipedia", ("id", "url", "title", "text"), "CC-BY-SA-3.0, GFDL",
        "chapters 12 and 13, key moments",
        f"{_PAGE}/wikimedia/wikipedia",
        config="20231101.en", revision="b04c8d1ceb2f5cd4588862100d08de323dccfbaa",
        note="Meng et al. took 20200501.en, which exists only as a script that `datasets` no longer runs.",
    ),
    Entry(
        "wikitext", "Salesforce/wikitext", ("text",), "CC-BY-SA-3.0, GFDL",
        "chapters 12 and 13, key moments on less to fetch",
        f"{_PAGE}/Salesforce/wikitext",
        config="wikitext-103-raw-v1", revision="b08601e04326c79dfdd32d625aee71d232d685c3", bytes=314_000_000,
        size="to fetch, about 1.8 million lines", note="A record is a line, not an article.",
    ),
    Entry(
        "yelp", "Yelp/yelp_review_full", ("label", "text"), "Yelp dataset agreement",
        "chapters 08 to 10, a domain like that of restaurants",
        f"{_PAGE}/Yelp/yelp_review_full/commit/bfd4401da2a18714a29e1c60738b0f03e6f563d9",
        config="yelp_review_full", revision="ac93e45d283c1b883519f47a951adfdbc2f2232f", bytes=483_811_554,
        size="of text", note="Reviews of any business; Ke et al. took those of restaurants, 758 MB.",
    ),
    Entry(
        "acl", "WINGNUS/ACL-OCL", ("acl_id", "title", "abstract", "full_text"),
        "MIT in its header, CC-BY-NC-4.0 in its text", "chapters 08 to 10, a domain like that of ACL papers",
        f"{_PAGE}/WINGNUS/ACL-OCL",
        field="full_text", revision="b7ebedb92ccc23d5f0de39e31642ac5f84516490", bytes=515_000_000,
        size="to fetch, about 74,000 papers", note="Ke et al. took ACL papers of S2ORC, 867 MB.",
    ),
    Entry(
        "ml-arxiv", "aalksii/ml-arxiv-papers", ("title", "abstract"), "not stated",
        "chapters 08 to 10, a domain like that of AI papers",
        f"{_PAGE}/aalksii/ml-arxiv-papers/blame/618863112393bdbe8a4130b4e4c43da060e9e306/README.md",
        field="abstract", revision="618863112393bdbe8a4130b4e4c43da060e9e306", records=105_832, bytes=130_808_836,
        size="of text", note="Abstracts of arXiv on machine learning; Ke et al. took AI papers of S2ORC, 507 MB.",
    ),
    Entry(
        "amazon", "fancyzhx/amazon_polarity", ("label", "title", "content"), "not stated",
        "chapters 08 to 10, a domain like that of phones",
        f"{_PAGE}/fancyzhx/amazon_polarity/tree/main",
        config="amazon_polarity", field="content", bytes=1_150_000_000, size="to fetch",
        note="Reviews of any product; Ke et al. took those of phones and of cameras, 724 and 319 MB.",
    ),
    Entry(
        "imdb", "stanfordnlp/imdb", ("text", "label"), "not stated",
        "chapters 08 to 10, a sixth domain",
        f"{_PAGE}/stanfordnlp/imdb/tree/main/plain_text",
        config="plain_text", split="train+unsupervised", bytes=63_000_000, size="to fetch",
        note="Reviews of films: no data set of cameras alone is known on the hub.",
    ),
    Entry(
        "das-domains", None, (), "not stated", "chapters 08 to 10, the six domains of Ke et al. 2023",
        "https://github.com/UIC-Liu-Lab/ContinualLM",
        place="https://drive.google.com/file/d/1_fAu9dPHUpFyAbAN1aBByib3tEVRlZpS",
        remedy="fetch and unpack it, and give each domain as files:PATH",
        size="758, 724, 319, 867, 507 and 989 MB: restaurants, phones, cameras, ACL, AI and PubMed papers",
        note="On no page of the hub; `yelp`, `acl`, `ml-arxiv`, `amazon` and `pubmed` are the nearest there.",
    ),
)  # fmt: skip
CATALOGUE = {entry.name: entry for entry in _ENTRIES}


def table() -> str:
    """The catalogue as a table in Markdown, one row a data set."""
    lines = [
        "| `hub:` name | data set, configuration, split | records | size | fields (read first) | licence | used in |",
        "| --- | --- | ---: | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_row, CATALOGUE.values())])


def notes() -> str:
    """Of each its revision, the page that states its licence and size, and what else is to be known; in Markdown."""
    return "\n".join(map(_note, CATALOGUE.values()))


def _note(entry: Entry) -> str:
    pinned = f"at `{entry.revision[:12]}`" if entry.revision else "at the commit of its `main`"
    told = [f"{pinned}." if entry.hub else "", entry.note, f"[Stated here]({entry.stated})."]
    return f"- `{entry.name}` {' '.join(part for part in told if part)}"


def _row(entry: Entry) -> str:
    where = f"`{entry.hub}`" if entry.hub else f"not on the hub: <{entry.place}>"
    chosen = ", ".join(f"`{part}`" for part in (entry.config, entry.split) if part and entry.hub)
    fields = [f"`{name}`" for name in sorted(entry.fields, key=lambda name: name != entry.field)]
    size = " ".join(part for part in (_bytes(entry.bytes), entry.size) if part)
    cells = [
        f"`{entry.name}`",
        f"{where}{', ' if chosen else ''}{chosen}",
        "unknown" if entry.records is None else f"{entry.records:,}",
        size or "unknown",
        ", ".join(fields) or "text",
        entry.licence,
        entry.used,
    ]
    return f"| {' | '.join(cells)} |"


def _bytes(count: int | None) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count is not None and count >= size:
            return f"{count / size:.3g} {unit}"
    return ""
