"""Pre-tokenizers of byte-level BPE: split a text into words, by name as in `tokenizer.ggml.pre`.

A name stands for the regular expressions in the `tokenizer.json` of the model that introduced it,
applied one after another: each match is a word, and so is the text between two matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from picoedge.errors import TextError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NO_SPACES = r" ?[^(\s|.,!?…。，、।۔،)]+"
_IDEOGRAPHS = r"[一-龥ࠀ-一가-퟿]+"
_KANA = r"[一-龥぀-ゟ゠-ヿ]+"
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
# Letters with case, as the first DeepSeek model lists them: ranges of code points, in hexadecimal.
_CASED_LETTERS = """
    41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386
    388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA
    1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59
    1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC
    1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139
    213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B
    A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F
    104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
# Scripts without spaces between words, as AFMoE lists them.
_ASIAN_SCRIPTS = """
    4E00-9FFF 3400-4DBF F900-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF 1780-17FF
    1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF
"""


def _code_points(ranges: str) -> str:
    """The inside of a character class."""
    ends = (span.split("-") for span in ranges.split())
    return "".join("-".join(rf"\x{{{end}}}" for end in span) for span in ends)


def _cl100k(digits: str, spaces: str = _SPACES) -> str:
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_OTHERS}|{spaces}"


def _deepseek(
    line_ends: str, digits: str = r"\p{N}{1,3}", ideographs: str = _KANA
) -> tuple[str, ...]:
    """DeepSeek 3's; `line_ends`: expression after the marks of a word."""
    words = (
        rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
        rf"| ?[\p{{P}}\p{{S}}]+{line_ends}|\s+(?!\S)|\s+"
    )
    return digits, ideographs, words


def _cased(ending: str, digits: str) -> str:
    return (
        rf"{_cased_words(ending, _UPPER, _LOWER)}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
    )


def _cased_words(ending: str, upper: str, lower: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return rf"{lead}{upper}*{lower}+{ending}|{lead}{upper}+{lower}*{ending}"


def _kimi() -> str:
    """Kimi K2's: runs of Han characters, then words of all other letters."""
    upper, lower = (letters[:-1] + r"&&[^\p{Han}]]" for letters in (_UPPER, _LOWER))
    words = _cased_words(f"{_CONTRACTION}?", upper, lower)
    return rf"\p{{Han}}+|{words}|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}"


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


_LINE_ENDS = r"[\r\n]*|\s*[\r\n]+"
_FALLING = "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4"))
_FAMILIES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
    (
        "gpt-2 gpt2 phi-2 mpt olmo jais trillion exaone4 gigachat a.x-4.0 mellum granite-docling",
        PreTokenizer((_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        PreTokenizer((r"\p{N}", _GPT2)),
    ),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer((_cl100k(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_cl100k(r"\p{N}{1,3}"),))),
    ("minicpm5", PreTokenizer((r"\p{N}{1,3}", _cl100k(r"\p{N}+")), ignore_merges=True)),
    (
        "jais-2",
        PreTokenizer((
            _cl100k(r"\p{N}{1,3}", rf"\s*[\r\n]+|{_FALLING}|\s{{1,2}}(?!\S)|\s{{1}}"),
        )),
    ),
    ("qwen2", PreTokenizer((_cl100k(r"\p{N}"),), normalizer="NFC")),
    (
        "qwen35",
        PreTokenizer(
            (
                rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
            ),
            normalizer="NFC",
        ),
    ),
    (
        "stablelm2 megrez hunyuan grok-2 solar-open deepseek-r1-qwen kormo f2llmv2",
        PreTokenizer((_cl100k(r"\p{N}"),)),
    ),
    ("laguna", PreTokenizer((r"[^\n]+|[\n]+", _cl100k(r"\p{N}")))),
    (
        "ufakzeka",
        PreTokenizer((rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}|{_SPACES}",)),
    ),
    (
        "seed-coder",
        PreTokenizer((
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+"
            rf"|{_SPACES}",
        )),
    ),
    (
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer((
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            rf"|{_OTHERS}|\s*[\r\n]|\s+(?!\S)|\s+",
        )),
    ),
    (
        "exaone-moe",
        PreTokenizer((
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )),
    ),
    ("tekken", PreTokenizer((_cased("", r"\p{N}"),), ignore_merges=True, add_bos=True)),
    (
        "gpt-4o llama4 kanana2 talkie minimax-m2",
        PreTokenizer((_cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),)),
    ),
    ("kimi-k2", PreTokenizer((_kimi(),))),
    (
        "chameleon",
        PreTokenizer(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",  # an image's tokens
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                _GPT2,
            ),
            add_bos=True,
        ),
    ),
    (
        "tiny_aya cohere2moe",
        PreTokenizer((
            r"\d{1,3}(?=(?:\d{3})*\b)", _cased(f"{_CONTRACTION}?", r"\p{N}{1,3}"),
        )),
    ),
    (
        "youtu",
        PreTokenizer(
            (
                r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _KANA,
                _cased(f"{_CONTRACTION}?", r"\p{N}"),
            ),
            ignore_merges=True,
        ),
    ),
    (
        "deepseek-llm",
        PreTokenizer((
            r"[\r\n]",
            rf"\s?[{_code_points(_CASED_LETTERS)}]+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            _IDEOGRAPHS,
            r"\p{N}",
        )),
    ),
    (
        "deepseek-coder",
        PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _IDEOGRAPHS, r"\p{N}")),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer(_deepseek(_LINE_ENDS)),
    ),
    # Digits by threes from the right, as in superbpe.
    (
        "afmoe",
        PreTokenizer(_deepseek(
            _LINE_ENDS,
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
            f"[{_code_points(_ASIAN_SCRIPTS)}]+",
        )),
    ),
    ("spark2_5", PreTokenizer((*_deepseek(r"|[\r\n]"), r"\p{N}"))),
    ("poro-chat bloom gpt3-finnish", PreTokenizer((_NO_SPACES,))),
    ("viking", PreTokenizer((_NO_SPACES, r"\p{N}"))),
    # Digits by threes from the right: the second expression matches the places between them.
    ("superbpe", PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
)  # fmt: skip


# Known, and of no use here: the reason, and the names.
_REFUSED = (
    (
        "is of models that write no text: embeddings",
        "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code jina-v5-nano roberta-bpe "
        "modern-bert whitespace granite-embed-multi-97m granite-embed-multi-311m",
    ),
    ("merges characters; only merges of bytes are supported", "gemma4 sarvam-moe"),
)


def find_pretokenizer(name: str) -> PreTokenizer:
    """Pre-tokenizer of a GGUF. Raises TextError, listing the known names, for an unknown one.

    A guess would give nearly right ids, and subtly wrong answers.
    """
    for names, pretokenizer in _FAMILIES:
        if name in names.split():
            return pretokenizer
    for reason, names in _REFUSED:
        if name in names.split():
            raise TextError(f"pre-tokenizer {name!r} {reason}", "take a model of `picoedge list`")
    known = " ".join(names for names, _ in _FAMILIES)
    raise TextError(f"pre-tokenizer {name!r} is not known", f"known: {known}")


def pretokenizer_name(pre_tokenizer: Any, normalizer: Any) -> str | None:
    """The first name with the rules of a `tokenizer.json`; None where there is none."""
    form = normalizer.get("type") if isinstance(normalizer, Mapping) else normalizer
    digits = {"type": "Digits", "individual_digits": True}
    for names, known in _FAMILIES:
        if form == known.normalizer and _plain(pre_tokenizer, digits) == known.patterns:
            return names.split()[0]
    return None


def _plain(pre_tokenizer: Any, digits: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The expressions of byte-level rules, in their order; None for any other rules."""
    if not isinstance(pre_tokenizer, Mapping):
        return None
    steps, patterns = pre_tokenizer.get("pretokenizers", [pre_tokenizer]), list[str]()
    for step in steps if isinstance(steps, list) else ():
        if step == digits:
            patterns.append(r"\p{N}")
        elif step.get("type") == "Split" and step.get("behavior") == "Isolated":
            patterns.append(str(step.get("pattern", {}).get("Regex")))
        elif step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
            patterns += [_GPT2] if step.get("use_regex", True) else []
        else:
            return None
    return tuple(patterns)
