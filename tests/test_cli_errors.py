"""Bad input to every command: one line that says what is wrong, exit status 2, and no work done before it."""

import gzip
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import test_cli_adapt
import test_cli_edit
import test_cli_trace
import zstandard
from conftest import tiny
from transformers import OPTConfig, OPTForCausalLM

from kemem.cli import main
from kemem.corpora import train_tokenizer
from kemem.entropy import GROUPS
from kemem.families import LAYOUTS

GOOD = b'{"text": "one line"}\n' * 400


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with models, corpora and runs, some of them sound."""
    root = tmp_path_factory.mktemp("place")
    tokenizer = train_tokenizer(["one line"], 270)
    for name, family in (
        ("model", "olmo"),
        ("ungated", "gpt2"),
        ("run/step1", "olmo"),
        ("run/step20", "olmo"),
    ):
        tiny(family, vocab=len(tokenizer)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tiny("olmo").save_pretrained(root / "speechless")
    (root / "empty").mkdir()
    (root / "torn").mkdir()
    (root / "torn" / "config.json").write_text("{")
    opt = OPTConfig(
        vocab_size=61,
        hidden_size=12,
        ffn_dim=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=12,
    )
    OPTForCausalLM(opt).save_pretrained(root / "opt")
    shutil.copytree(root / "model", root / "weightless")
    (root / "weightless" / "model.safetensors").unlink()
    shutil.copytree(root / "model", root / "damaged")
    (root / "damaged" / "model.safetensors").write_bytes(b"\xff" * 100)
    packed, squeezed = (
        gzip.compress(os.urandom(3000).hex().encode()),
        zstandard.compress(os.urandom(3000).hex().encode()),
    )
    for name, data in {
        "good.jsonl": GOOD,
        "empty.txt": b"",
        "blank.txt": b"\n \n\n",
        "latin.txt": "first\nnaïve\n".encode("latin-1"),
        "broken.jsonl": GOOD[:42] + b'{"text": \n',
        "textless.jsonl": GOOD[:42] + b'{"body": "x"}\n',
        "wordless.jsonl": b'{"text": ""}\n',
        "number.jsonl": b'{"text": 5}\n',
        "cut.txt.gz": packed[: len(packed) // 2],
        "cut.txt.zst": squeezed[: len(squeezed) // 2],
        "table.csv": b"a,b\n",
        "short.txt": b"a few words\n",
    }.items():
        (root / name).write_bytes(data)
    sound = {
        "train_context": "one line", "paraphrases": ["line one"] * 9, "mem_input": ["one"], "mem_target": ["line"],
        "gen_input": [], "gen_target": [], "hard_gen_input": [], "hard_gen_target": [],
    }  # fmt: skip
    question = {"prompt": "one", "candidates": ["line", "one"], "answer": 0}
    for name, records in {
        "told.json": [sound],
        "nothing.json": [],
        "brief.json": [{**sound, "paraphrases": ["line one"]}],
        "fieldless.json": [sound, {key: value for key, value in sound.items() if key != "gen_target"}],
        "border.json": [{**sound, "mem_input": ["one "]}],
        "long.json": [{**sound, "mem_input": ["one line " * 40 + "one"]}],
    }.items():
        (root / name).write_text(json.dumps(records))
    for name, changes in {
        "asked.jsonl": {},
        "promptless.jsonl": {"prompt": None},
        "choiceless.jsonl": {"candidates": ["line"]},
        "twice.jsonl": {"candidates": ["line", "line"]},
        "elsewhere.jsonl": {"answer": "two"},
        "beyond.jsonl": {"answer": 2},
        "true.jsonl": {"answer": True},
        "endless.jsonl": {"prompt": "one line " * 40},
    }.items():
        (root / name).write_text(json.dumps(question) + "\n\n" + json.dumps({**question, **changes}) + "\n")
    usual = {"block": "model.layers.{}", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    (root / "layout.json").write_text(json.dumps(usual))
    (root / "released").mkdir()
    for name in GROUPS.values():
        (root / "released" / name).write_text(json.dumps([sound]))
    (root / "unparsed.jsonl").write_text(json.dumps(question) + "\n{\n")
    tiny("roberta", vocab=len(tokenizer)).save_pretrained(root / "masked")
    (root / "other").mkdir()
    (root / "other" / "thesis.tex").write_text("mine")
    return root


# command, and what the line must say. {0} is the folder above.
ENTROPY = {
    "no model": ("entropy", "Missing argument 'MODEL'; see kemem entropy --help"),
    "unknown option": ("entropy {0}/model --colour red", "No such option: --colour"),
    "option without value": ("entropy {0}/model --instances", "--instances"),
    "not a number": ("entropy {0}/model --instances many", "--instances"),
    "model missing": ("entropy {0}/nowhere", "expected a folder with a model, or a name on the hub"),
    "model is a file": ("entropy {0}/good.jsonl", "which is neither"),
    "not a model": (
        "entropy {0}/empty",
        "got {0}/empty without a config.json; give one written by save_pretrained",
    ),
    "revisions but none named": ("entropy {0}/run", "give a revision: step1, step20"),
    "revision missing": (
        "entropy {0}/run --revision step1 --revision step7",
        "got revision 'step7'; choose one of step1, step20",
    ),
    "revision where there are none": (
        "entropy {0}/model --revision step7",
        "got revision 'step7'; it has none",
    ),
    "revision outside": ("entropy {0}/run --revision ../model", "got revision '../model'"),
    "config torn": ("entropy {0}/torn", "in {0}/torn; got"),
    "unknown family": ("entropy {0}/opt", "expected a model of a known family (olmo, olmo2, llama"),
    "no weights": ("entropy {0}/weightless --corpus files:{0}/good.jsonl", "weightless"),
    "damaged weights": ("entropy {0}/damaged --corpus files:{0}/good.jsonl", "expected"),
    "no tokenizer": (
        "entropy {0}/speechless --corpus files:{0}/good.jsonl",
        "expected a tokenizer beside the weights",
    ),
    "no gate": ("entropy {0}/ungated --coefficient relu-gate", "relu-gate needs a gated model; got 'gpt2'"),
    "unknown coefficient": ("entropy {0}/model --coefficient square", "abs, relu, relu-gate; got 'square'"),
    "unknown padding": ("entropy {0}/model --padding left", "mask, include; got 'left'"),
    "unknown dtype": (
        "entropy {0}/model --dtype float8",
        "float32, float64, bfloat16, float16; got 'float8'",
    ),
    "unknown device": ("entropy {0}/model --device tpu", "got 'tpu'; choose one of auto, cpu, cuda, mps"),
    "device absent": ("entropy {0}/model --device mps", "got 'mps'; use cpu"),
    "no instances": ("entropy {0}/model --instances 0", "--instances to be 1 or more; got 0"),
    "no length": ("entropy {0}/model --length 0", "--length to be 1 or more; got 0"),
    "no batch": ("entropy {0}/model --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "layout missing": ("entropy {0}/opt --layout {0}/none.json", "No such file or directory; check the path"),
    "layout that is none": (
        "entropy {0}/opt --layout {0}/told.json",
        "one object of strings in {0}/told.json",
    ),
    "layout of another model": (
        "entropy {0}/opt --layout {0}/layout.json --corpus files:{0}/good.jsonl",
        "expected the blocks of a 'opt' model at 'model.layers.{{}}'",
    ),
    "layout of a known family": (
        "entropy {0}/model --layout {0}/layout.json",
        "got 'olmo', which has another one",
    ),
    "json nowhere": ("entropy {0}/model --json {0}/nowhere/a.json", "create {0}/nowhere first"),
    "json in a folder": ("entropy {0}/model --json {0}/empty", "name a file in it"),
}
CORPORA = {
    "unknown scheme": ("novels", "a corpus is docstrings, world, files:PATH or hub:NAME"),
    "a bare path": ("{0}/good.jsonl", "write files:{0}/good.jsonl"),
    "file missing": ("files:{0}/nowhere.txt", "exists; got {0}/nowhere.txt"),
    "no path": ("files:", "must be followed by a path"),
    "unknown kind of file": ("files:{0}/table.csv", "must end in .txt"),
    "folder without texts": ("files:{0}/empty", "got none in {0}/empty"),
    "empty": ("files:{0}/empty.txt", "a corpus must hold text"),
    "blank": ("files:{0}/blank.txt", "a corpus must hold text"),
    "texts without a word": ("files:{0}/wordless.jsonl", "a corpus must hold text"),
    "not UTF-8": ("files:{0}/latin.txt", "got byte 0xef in {0}/latin.txt, line 2"),
    "line that does not parse": ("files:{0}/broken.jsonl", "{0}/broken.jsonl, line 3: Expecting value"),
    "line without text": ("files:{0}/textless.jsonl", "got body in {0}/textless.jsonl, line 3"),
    "text that is a number": ("files:{0}/number.jsonl", "got int in {0}/number.jsonl, line 1"),
    "gz cut off": ("files:{0}/cut.txt.gz", "{0}/cut.txt.gz is damaged or cut off"),
    "zst cut off": ("files:{0}/cut.txt.zst", "{0}/cut.txt.zst is damaged or cut off"),
    "unknown package": ("docstrings:tensorflow", "got 'tensorflow'"),
    "unknown option": ("world:size=3", "got 'size'"),
    "variable not set": ("files:$KEMEM_DATA/novels.txt", "needs the environment variable KEMEM_DATA"),
}
PRETRAIN = {
    "no scale": ("pretrain --out {0}/new", "Missing option '--scale'"),
    "no folder": ("pretrain --scale smoke", "Missing option '--out'"),
    "unknown scale": ("pretrain --scale huge --out {0}/new", "smoke, laptop, gpu, paper; got 'huge'"),
    "negative seed": ("pretrain --scale smoke --seed -1 --out {0}/new", "--seed to be 0 or more; got -1"),
    "unknown dtype": ("pretrain --scale smoke --dtype float16 --out {0}/new", "got 'float16'"),
    "device absent": (
        "pretrain --scale smoke --device mps --out {0}/new",
        "got 'mps'; use cpu",
    ),
    "no batch": ("pretrain --scale smoke --batch-size 0 --out {0}/new", "--batch-size to be 1 or more"),
    "json nowhere": (
        "pretrain --scale smoke --out {0}/new --json {0}/nowhere/a.json",
        "create {0}/nowhere first",
    ),
    "out is a file": ("pretrain --scale smoke --out {0}/good.jsonl", "got the file {0}/good.jsonl"),
    "out holds something": ("pretrain --scale smoke --out {0}/other", "holds 'thesis.tex'"),
    "too little text": (
        "pretrain --scale smoke --corpus files:{0}/short.txt --out {0}/brief",
        "at least one block",
    ),
}
WAKE = "resuscitate {0}/model --fraction 0.5 --gain 1 --out {0}/woken"
RESUSCITATE = {
    "no model": ("resuscitate --fraction 0.5 --gain 1 --out {0}/woken", "Missing argument 'MODEL'"),
    "no fraction": ("resuscitate {0}/model --gain 1 --out {0}/woken", "Missing option '--fraction'"),
    "no gain": ("resuscitate {0}/model --fraction 0.5 --out {0}/woken", "Missing option '--gain'"),
    "no folder": ("resuscitate {0}/model --fraction 0.5 --gain 1", "Missing option '--out'"),
    "fraction in percent": (
        "resuscitate {0}/model --fraction 50 --gain 1 --out {0}/woken",
        "expected --fraction to be a share, 0 to 1; got 50.0; for 50 percent give 0.5",
    ),
    "fraction below 0": ("resuscitate {0}/model --fraction -0.1 --gain 1 --out {0}/woken", "got -0.1"),
    "fraction that is no number": (
        "resuscitate {0}/model --fraction nan --gain 1 --out {0}/woken",
        "--fraction to be a share, 0 to 1; got nan",
    ),
    "gain of 0": (
        "resuscitate {0}/model --fraction 0.5 --gain 0 --out {0}/woken",
        "expected --gain to be a number above 0; got 0.0",
    ),
    "gain below 0": ("resuscitate {0}/model --fraction 0.5 --gain -2 --out {0}/woken", "got -2.0"),
    "gain without end": ("resuscitate {0}/model --fraction 0.5 --gain inf --out {0}/woken", "got inf"),
    "model missing": (
        "resuscitate {0}/nowhere --fraction 0.5 --gain 1 --out {0}/woken",
        "expected a folder with a model, or a name on the hub",
    ),
    "revision missing": (
        "resuscitate {0}/run --revision step7 --fraction 0.5 --gain 1 --out {0}/woken",
        "got revision 'step7'; choose one of step1, step20",
    ),
    "unknown family": (
        "resuscitate {0}/opt --fraction 0.5 --gain 1 --out {0}/woken",
        "expected a model of a known family (olmo, olmo2, llama",
    ),
    "no tokenizer": (
        "resuscitate {0}/speechless --fraction 0.5 --gain 1 --out {0}/woken --corpus files:{0}/good.jsonl",
        "expected a tokenizer beside the weights",
    ),
    "out is a file": (
        "resuscitate {0}/model --fraction 0.5 --gain 1 --out {0}/good.jsonl",
        "got the file {0}/good.jsonl",
    ),
    "out in a file": (
        "resuscitate {0}/model --fraction 0.5 --gain 1 --out {0}/good.jsonl/new",
        "expected --out where it may be written; got {0}/good.jsonl/new",
    ),
    "out holds something": (
        "resuscitate {0}/model --fraction 0.5 --gain 1 --out {0}/other",
        "{0}/other holds 'thesis.tex'; choose another",
    ),
    "out is the model": ("resuscitate {0}/model --fraction 0.5 --gain 1 --out {0}/model", "{0}/model holds"),
    "unknown dtype": (f"{WAKE} --dtype float8", "float32, float64, bfloat16, float16; got 'float8'"),
    "unknown device": (f"{WAKE} --device tpu", "got 'tpu'; choose one of auto, cpu, cuda, mps"),
    "no instances": (f"{WAKE} --instances 0", "--instances to be 1 or more; got 0"),
    "no length": (f"{WAKE} --length 0", "--length to be 1 or more; got 0"),
    "no batch": (f"{WAKE} --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "layout of a known family": (f"{WAKE} --layout {{0}}/layout.json", "got 'olmo', which has another one"),
    "json nowhere": (f"{WAKE} --json {{0}}/nowhere/a.json", "create {0}/nowhere first"),
}
LEARN = (
    "acquire {0}/model --passages {0}/told.json --corpus files:{0}/good.jsonl --steps 20 --lr 1e-3 --batch 4"
)
_MASKED = LEARN.replace("{0}/model", "{0}/masked")
_OF = LEARN.replace("{0}/told.json", "{0}/{1}")
ACQUIRE = {
    "no model": ("acquire --passages {0}/told.json", "Missing argument 'MODEL'"),
    "no passages": (LEARN.replace("--passages {0}/told.json", ""), "Missing option '--passages'"),
    "no corpus": (LEARN.replace("--corpus files:{0}/good.jsonl", ""), "Missing option '--corpus'"),
    "no steps": (LEARN.replace("--steps 20", ""), "Missing option '--steps'"),
    "no rate": (LEARN.replace("--lr 1e-3", ""), "Missing option '--lr'"),
    "no rows": (LEARN.replace("--batch 4", ""), "Missing option '--batch'"),
    "0 steps": (f"{LEARN} --steps 0", "--steps to be 1 or more; got 0"),
    "0 rows": (f"{LEARN} --batch 0", "--batch to be 1 or more; got 0"),
    "rate of 0": (f"{LEARN} --lr 0", "expected --lr to be a number above 0; got 0.0; the paper has 4e-4"),
    "rate below 0": (f"{LEARN} --lr -1", "got -1.0"),
    "rate that is no number": (f"{LEARN} --lr nan", "got nan"),
    "rate without end": (f"{LEARN} --lr inf", "got inf"),
    "no interval": (f"{LEARN} --interval 0", "--interval to be 1 or more; got 0"),
    "interval beyond the run": (f"{LEARN} --interval 21", "within the run; got 21 steps of 20"),
    "no slots": (f"{LEARN} --slots 0", "--slots to be 1 or more; got 0"),
    "more slots than tellings": (f"{LEARN} --slots 11", "each of 11 slots; got 10 of paraphrase passage 1"),
    "fewer steps than slots": (f"{LEARN} --steps 9", "at least the number of slots, 10; got 9"),
    "negative seed": (f"{LEARN} --seed -1", "--seed to be 0 or more; got -1"),
    "rows of one token": (f"{LEARN} --length 1", "--length to be 2 or more; got 1"),
    "no batch": (f"{LEARN} --batch-size 0", "--batch-size to be 1 or more; got 0"),
    "unknown dtype": (f"{LEARN} --dtype float16", "float32, float64, bfloat16; got 'float16'"),
    "bfloat16 without hardware": (
        f"{LEARN} --dtype bfloat16 --device cpu",
        "expected a device that computes in bfloat16; got cpu; use --dtype float32",
    ),
    "unknown device": (f"{LEARN} --device tpu", "got 'tpu'; choose one of auto, cpu, cuda, mps"),
    "json nowhere": (f"{LEARN} --json {{0}}/nowhere/a.json", "create {0}/nowhere first"),
    "out is a file": (f"{LEARN} --out {{0}}/good.jsonl", "got the file {0}/good.jsonl"),
    "out holds something": (f"{LEARN} --out {{0}}/other", "{0}/other holds 'thesis.tex'"),
    "out is the model": (f"{LEARN} --out {{0}}/model", "{0}/model holds 'config.json'"),
    "passages missing": (_OF.replace("{1}", "none.json"), "No such file or directory for {0}/none.json"),
    "passages that do not parse": (_OF.replace("{1}", "good.jsonl"), "must be JSON; got Extra data"),
    "no passage": (_OF.replace("{1}", "nothing.json"), "--passages to hold a passage; got an empty list"),
    "passage without a field": (
        _OF.replace("{1}", "fieldless.json"),
        "'gen_target' must be a list of texts; got no such field in record 2 of {0}/fieldless.json",
    ),
    "input that is no prefix": (
        _OF.replace("{1}", "border.json"),
        "(memorisation of passage 1); move the border",
    ),
    "probe beyond the context": (_OF.replace("{1}", "long.json"), "within the model's context of 64 tokens"),
    "once missing": (f"{LEARN} --once {{0}}/none.json", "No such file or directory for {0}/none.json"),
    "once beside a folder": (
        f"{LEARN} --passages {{0}}/released --once {{0}}/told.json",
        "got the folder {0}/released, which has its own",
    ),
    "probes missing": (f"{LEARN} --probes {{0}}/none.json", "No such file or directory for {0}/none.json"),
    "no probes": (f"{LEARN} --probes {{0}}/nothing.json", "--probes to hold a passage; got an empty list"),
    "probe that is no prefix": (f"{LEARN} --probes {{0}}/border.json", "for the probe 'one ' 'line'"),
    "tasks missing": (f"{LEARN} --tasks {{0}}/none.jsonl", "No such file or directory for {0}/none.jsonl"),
    "tasks not UTF-8": (f"{LEARN} --tasks {{0}}/latin.txt", "in UTF-8; got other bytes in {0}/latin.txt"),
    "no task": (f"{LEARN} --tasks {{0}}/blank.txt", "--tasks to hold a question; got none in {0}/blank.txt"),
    "task that does not parse": (
        f"{LEARN} --tasks {{0}}/unparsed.jsonl",
        "one JSON object; got Expecting property name enclosed in double quotes: line 1 column 2 (char 1) in "
        "{0}/unparsed.jsonl, line 2",
    ),
    "task without a prompt": (
        f"{LEARN} --tasks {{0}}/good.jsonl",
        "must have the field 'prompt'; got text in {0}/good.jsonl, line 1",
    ),
    "prompt that is no text": (
        f"{LEARN} --tasks {{0}}/promptless.jsonl",
        "got NoneType in {0}/promptless.jsonl",
    ),
    "one candidate": (
        f"{LEARN} --tasks {{0}}/choiceless.jsonl",
        """two or more different texts; got ["line"] in {0}/choiceless.jsonl, line 3""",
    ),
    "candidates that are the same": (f"{LEARN} --tasks {{0}}/twice.jsonl", """got ["line", "line"] in"""),
    "answer that is no candidate": (
        f"{LEARN} --tasks {{0}}/elsewhere.jsonl",
        """its place, 0 to 1; got "two" in {0}/elsewhere.jsonl, line 3""",
    ),
    "place beyond the candidates": (f"{LEARN} --tasks {{0}}/beyond.jsonl", "0 to 1; got 2 in"),
    "answer that is true": (f"{LEARN} --tasks {{0}}/true.jsonl", "0 to 1; got true in"),
    "question beyond the context": (f"{LEARN} --tasks {{0}}/endless.jsonl", "context of 64 tokens; got 1"),
    "model missing": (LEARN.replace("{0}/model", "{0}/nowhere"), "expected a folder with a model"),
    "revision missing": (
        LEARN.replace("{0}/model", "{0}/run --revision step7"),
        "got revision 'step7'; choose one of step1, step20",
    ),
    "masked model": (_MASKED, "predicts the next token; got roberta, which fills in masked ones"),
    "no tokenizer": (LEARN.replace("{0}/model", "{0}/speechless"), "expected a tokenizer beside the weights"),
    "damaged weights": (LEARN.replace("{0}/model", "{0}/damaged"), "expected"),
    "too little text": (f"{LEARN} --corpus files:{{0}}/short.txt", "at least one block of 64 tokens"),
    "fewer rows than a step": (f"{LEARN} --batch 400", "as a step reads, 400; got"),
}
RUN = {
    "no chapter": ("run", "Missing argument 'CHAPTER'"),
    "unknown chapter": ("run 77", "got '77'"),
    "half a name": ("run 00_how", "one of 00_how_to_read"),
    "unknown scale": ("run 00 --scale huge", "scale is one of smoke, laptop, gpu, paper; got 'huge'"),
    "unknown parameter": ("run 00 -p sede=1", "the parameters of this chapter are scale, seed"),
    "value of a wrong kind": ("run 00 -p seed=one", "seed is a int like 0"),
    "value out of range": ("run 00 -p seed=0,-1", "seed is a whole number, 0 or more; got -1"),
    "no value": ("run 00 -p seed", "expected -p name=value"),
    "empty value": ("run 00 -p seed=1,,2", "expected -p name=value"),
    "value twice": ("run 00 -p seed=1,2,1", "expected each value of seed once; got 1 twice"),
    "scale twice": ("run 00 --scale smoke -p scale=laptop", "expected scale once"),
    "unknown device": ("run 00 --device tpu", "device is one of auto, cpu, cuda, mps; got 'tpu'"),
    "unknown dtype": ("run 00 --dtype float8", "got 'float8'"),
    "no such parameter": ("run 00 --batch-size 4", "got batch_size"),
    "no batch": ("run 00 --batch-size 0", "--batch-size to be 1 or more"),
    "unknown card": ("run 00 --scale smoke --dry-run --card B1", "a card is one of H200, H100"),
    "card without a forecast": ("run 00 --card H100", "expected --card with --dry-run"),
    "unknown place": ("run 00 --scale smoke --on nowhere", "--on is local:N, gpus, or slurm:"),
    "no processes": ("run 00 --scale smoke --on local:0", "--on is local:N"),
    "scale without sizes": ("run 15 --scale paper --dry-run", "got 'paper'"),
    "out is tracked": ("run 00 --out {checkout}/chapters", "expected --out outside the checkout"),
    "out is a file": ("run 00 --out {0}/good.jsonl", "got the file {0}/good.jsonl"),
}
CLAIMS = {
    "unknown part": ("claims --part 4", "expected --part to be 1, 2 or 3; got 4"),
    "part that is no number": ("claims --part one", "--part"),
    "unknown scale": ("claims --scale huge", "smoke, laptop, gpu, paper; got 'huge'"),
    "json nowhere": ("claims --json {0}/nowhere/a.json", "create {0}/nowhere first"),
}
FETCH = {
    "no name": ("fetch", "Missing argument 'NAME'"),
    "unknown kind": ("fetch a/b --kind text", "expected --kind to be one of model, data; got 'text'"),
    "limit of a model": ("fetch a/b --limit 5", "expected --limit with --kind data; got model"),
    "no records": ("fetch a/b --kind data --limit 0", "--limit to be 1 or more; got 0"),
    "steps of data": ("fetch a/b --kind data --list", "expected --list with --kind model; got data"),
    "steps of a revision": ("fetch a/b --list --revision main", "expected --list alone; got --revision too"),
    "steps to a folder": ("fetch a/b --list --to {0}/new", "expected --list alone; got --to too"),
    "a folder": ("fetch {0}/model", "got the folder {0}/model, which is here already"),
    "data to a file": ("fetch a/b --kind data --to {0}/good.jsonl", "got the file {0}/good.jsonl"),
    "data over something": ("fetch a/b --kind data --to {0}/other", "{0}/other holds 'thesis.tex'"),
    "data by a path": ("fetch ./nowhere --kind data", "expected a name on the hub; got the path ./nowhere"),
    "data by a wrong option": (
        "fetch c4:colour=red --kind data",
        "hub has the options field, split, limit, config",
    ),
    "json nowhere": ("fetch a/b --json {0}/nowhere/a.json", "create {0}/nowhere first"),
}
CONVERT = {
    "no model": ("convert --out {0}/converted", "Missing argument 'MODEL'"),
    "no folder": ("convert {0}/model", "Missing option '--out'"),
    "revision of a folder": (
        "convert {0}/run --revision step1 --out {0}/converted",
        "of the folder {0}/run; name the",
    ),
    "nothing native": (
        "convert {0}/empty --out {0}/converted",
        "expected config.yaml or config.json in {0}/empty; got",
    ),
    "converted already": ("convert {0}/model --out {0}/converted", "in the configuration of {0}/model; got"),
    "out is a file": ("convert {0}/model --out {0}/good.jsonl", "got the file {0}/good.jsonl"),
    "out holds something": ("convert {0}/model --out {0}/other", "{0}/other holds 'thesis.tex'"),
    "json nowhere": (
        "convert {0}/model --out {0}/converted --json {0}/nowhere/a.json",
        "create {0}/nowhere first",
    ),
}
OTHER = {
    "unknown command": ("entropies x", "No such command 'entropies'"),
    "unknown option": ("--loud", "No such option: --loud"),
}
TABLE = {
    **{f"entropy: {name}": case for name, case in ENTROPY.items()},
    **{
        f"entropy: corpus: {n}": (f"entropy {{0}}/model --corpus '{s}'", said)
        for n, (s, said) in CORPORA.items()
    },
    **{f"pretrain: {name}": case for name, case in PRETRAIN.items()},
    **{
        f"pretrain: corpus: {n}": (f"pretrain --scale smoke --out {{0}}/new --corpus '{s}'", said)
        for n, (s, said) in CORPORA.items()
    },
    **{f"resuscitate: {name}": case for name, case in RESUSCITATE.items()},
    **{f"resuscitate: corpus: {n}": (f"{WAKE} --corpus '{s}'", said) for n, (s, said) in CORPORA.items()},
    **{f"acquire: {name}": case for name, case in ACQUIRE.items()},
    **{f"acquire: corpus: {n}": (f"{LEARN} --corpus '{s}'", said) for n, (s, said) in CORPORA.items()},
    **{f"run: {name}": case for name, case in RUN.items()},
    **{f"claims: {name}": case for name, case in CLAIMS.items()},
    **{f"fetch: {name}": case for name, case in FETCH.items()},
    **{f"convert: {name}": case for name, case in CONVERT.items()},
    **OTHER,
}


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_is_one_line_and_status_2(case, place, capfd, monkeypatch):
    monkeypatch.setattr("kemem.families.LAYOUTS", dict(LAYOUTS))  # what a case registers is gone after it

    def never(*_, **__):
        raise AssertionError("long work began")

    for work in (
        "kemem.entropy.measure",
        "kemem.entropy.acquire",
        "kemem.studies.setup.train",
        "kemem.book.run.execute",
    ):
        monkeypatch.setattr(work, never)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.delenv("KEMEM_DATA", raising=False)
    monkeypatch.setenv("KEMEM_PROGRESS", "3600")  # nothing said of work that a slow machine needs long for
    command, said = (text.format(place, checkout=Path(__file__).resolve().parents[1]) for text in TABLE[case])
    assert main(shlex.split(command)) == 2
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("kemem: ") and said in lines[0] and len(lines[0]) < 600
    assert not shown.out


def test_a_name_that_the_hub_does_not_know_is_one_line(capfd, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["entropy", "no-such-owner/no-such-model"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("kemem: expected no-such-owner/no-such-model to be a folder")


def test_a_folder_with_another_run_is_refused_before_the_text_is_read(tmp_path, capfd, monkeypatch):
    """With what differs. The corpus is not there any more, so reading it would be another line."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of a text that is long enough.\n" for i in range(1000)))
    command = f"pretrain --scale smoke --corpus files:{text} --out {tmp_path}/model --device cpu"
    assert main(shlex.split(command)) == 0
    weights = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    capfd.readouterr()
    monkeypatch.setattr("kemem.studies.setup.read", lambda spec: pytest.fail("read"))
    for changed, said in (
        ("--seed 5", "seed (0 there, 5 now)"),
        ("--batch-size 2", "accumulation (1 there, 4 now)"),
    ):
        assert main(shlex.split(f"{command} {changed}")) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "holds another" in line and said in line
    (tmp_path / "model" / "settings.json").write_text("{")
    assert main(shlex.split(command)) == 2
    assert "got a damaged file" in capfd.readouterr().err
    assert weights == {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}


@pytest.mark.parametrize("existed", [False, True])
def test_a_refused_training_leaves_its_folder_as_it_was(existed, tmp_path, capfd):
    """Too little text is seen when it is cut into tokens, after the folder was taken."""
    out = tmp_path / "model"
    if existed:
        out.mkdir()
        (out / ".keep").write_text("mine")
    (tmp_path / "text.txt").write_text("Two lines.\nNo more.\n")
    command = f"pretrain --scale smoke --corpus files:{tmp_path}/text.txt --out {out} --device cpu"
    assert main(shlex.split(command)) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert out.is_dir() == existed
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"text.txt"} | ({".keep"} if existed else set())
    assert not existed or {path.name for path in out.iterdir()} == {".keep"}


def test_every_option_of_every_command_is_in_the_table():
    """A new option needs a case here, or a reason not to have one: those below cannot be given wrongly."""
    from typer.main import get_command

    from kemem.cli import app

    # --json and --corpus stand in TABLE by other means
    free = {"--attention", "--help", "--json", "--corpus", "--sharded", "--stream", "--dry-run"}
    elsewhere = {"adapt": test_cli_adapt.TABLE, "edit": test_cli_edit.TABLE, "trace": test_cli_trace.TABLE}
    commands = get_command(app).commands
    assert set(commands) == {
        *("acquire", "claims", "convert", "entropy", "fetch", "pretrain", "resuscitate", "run"),
        *elsewhere,
    }
    for name, command in commands.items():
        table = elsewhere.get(name) or {k: v for k, v in TABLE.items() if v[0].startswith(name)}
        used = " ".join(case for case, *_ in table.values()).split()
        for option in (p for p in command.params if p.param_type_name == "option"):
            assert {*option.opts} & {*used, *free}, f"{name} {option.opts[0]}"


def test_the_sound_places_of_the_table_are_sound(place, capfd):
    """Else a case could be refused for another reason than its own."""
    command = f"entropy {place}/run --revision step1 --corpus files:{place}/good.jsonl --json - --device cpu"
    assert main(shlex.split(command)) == 0
    assert json.loads(capfd.readouterr().out)[0]["tokens"] > 3
