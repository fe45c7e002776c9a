"""Chapter 16: what of the model that the reader brings asks for care."""

from __future__ import annotations

from kemem.editing.places import leading
from kemem.studies.own import Given

PASSED = ("relu", "relu2", "relu6")  # activations that give exact zeros
UNKNOWN = "not named"
BENT = ("hidden_act", "activation_function", "hidden_activation")  # what configurations call the activation


def checklist(g: Given) -> list[tuple[str, str, str]]:
    """What of this model asks for care, from configuration and tokenizer alone: what, as it is here, what follows."""
    config, tok = g.config, g.tok
    start = leading(tok)

    def cut(text: str) -> list[int]:
        return tok(text, add_special_tokens=False)["input_ids"]

    ids = [i for text in g.texts[:50] for i in cut(text)]
    unknown = 0.0 if tok.unk_token_id is None else ids.count(tok.unk_token_id) / max(1, len(ids))
    spaced = cut(" Paris") != cut("Paris")
    bent = next((found for name in BENT if (found := getattr(config, name, None))), UNKNOWN)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    norm = g.outline.layout.norm
    return [
        ("feed-forward layer", f"{'gated' if g.outline.gated else 'ungated'}, {bent}",
         "waking scales coefficients" if g.outline.gated else "waking scales values; relu-gate does not apply"),
        ("exact zeros", "likely" if bent in PASSED else "none",
         "memories that are never used cannot be woken" if bent in PASSED else "every memory works a little, always"),
        ("norm behind it", norm.replace("_", " "),
         "can be edited by keys" if norm == "none" else "is not edited by keys"),
        ("before a text", tok.decode(start) if start else "nothing",
         "read before prompts, not before texts" if start else "a prompt is read as it stands"),
        ("a space before a word", "part of its token" if spaced else "makes no difference",
         "objects are scored with it" if spaced else "nothing to mind"),
        ("unknown tokens of the text", f"{100 * unknown:.1f} %", "a wrong tokenizer shows here"),
        ("number type of the files", str(getattr(config, "dtype", None) or UNKNOWN).removeprefix("torch."),
         f"measured in {g.dtype}"),
        ("context", str(g.longest or UNKNOWN), f"texts are cut to {g.length} tokens"),
        ("attention", ", ".join(sorted(kinds)).replace("_", " "),
         "editors run blocks by themselves" if len(kinds) == 1 else "editors refuse mixed kinds"),
    ]  # fmt: skip
