"""Pre-tokenizers of byte-level BPE: split a text into words, by name as in `tokenizer.ggml.pre`.

A name stands for the regular expressions in the `tokenizer.json` of the model that introduced it,
applied one after another: each match is a word, and so is the text between two matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from picoedge.errors import TextError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""


def _cl100k(digits: str) -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_OTHERS}|{_SPACES}"


def _cased(ending: str, digits: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{lead}{_UPPER}*{_LOWER}+{ending}|{lead}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True)
class PreTokenizer:
    """Expressions, applied in order.

    `ignore_merges`: a word that is a token stays whole. `add_bos`: default where the metadata has
    none. `normalizer`: Unicode form that the text is converted to first.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    normalizer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The `pre_tokenizer` of a `tokenizer.json`."""
        splits: list[dict[str, Any]] = [
            {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
            for p in self.patterns
        ]
        alphabet = {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
        }  # fmt: skip
        return {"type": "Sequence", "pretokenizers": [*splits, alphabet]}


_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
    (
        "gpt-2 gpt2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum",
        PreTokenizer((_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer((_cl100k(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_cl100k(r"\p{N}{1,3}"),))),
    ("qwen2 deepseek-r1-qwen", PreTokenizer((_cl100k(r"\p{N}"),), normalizer="NFC")),
    ("stablelm2 megrez hunyuan grok-2 solar-open", PreTokenizer((_cl100k(r"\p{N}"),))),
    ("tekken", PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4", PreTokenizer((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),))),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    ),
    (
        "deepseek-v3 hunyuan-dense",
        PreTokenizer((
            r"\p{N}{1,3}",
            r"[一-龥぀-ゟ゠-ヿ]+",
            rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        )),
    ),
)  # fmt: skip


def find_pretokenizer(name: str) -> PreTokenizer:
    """Pre-tokenizer of a GGUF. Raises TextError, listing the known names, for an unknown one.

    A guess would give nearly right ids, and subtly wrong answers.
    """
    for names, pretokenizer in _FAMILIES:
        if name in names.split():
            return pretokenizer
    known = " ".join(names for names, _ in _FAMILIES)
    raise TextError(f"pre-tokenizer {name!r} is not known", f"known: {known}")
