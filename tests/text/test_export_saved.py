"""Folders as transformers saves them: a large tokenizer.json, and tokenizer.model beside it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from text_models import SAMPLES, load_sentencepiece, trained_sentencepiece

from picoedge.errors import TextError
from picoedge.text.export.export import write_from_huggingface
from picoedge.text.export.json_head import read_head
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

LARGE = 13 << 20
TYPED = [*SAMPLES, "a<more>b", "x<|im_start|> y", "<|im_end|>\n<|im_start|>user", "<s>the</s> the"]


@functools.cache
def merges() -> list[tuple[str, str]]:
    """What a SentencePiece model merges, in its order."""
    model = load_sentencepiece(trained_sentencepiece(True))
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(model.vocab_size())}
    parts = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(parts, key=lambda part: -part[0])]


def save(folder: Path, kind: str) -> Any:
    """The tokenizer saved by transformers, its tokenizer.json padded; and it, loaded again."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model = load_sentencepiece(trained_sentencepiece(True))
    vocab = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    made = Tokenizer(
        models.BPE(vocab, merges(), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if kind == "each":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(steps)
    elif kind == "never":
        made.normalizer = normalizers.Replace(" ", "▁")
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"])
    made.add_tokens([AddedToken("<more>", normalized=False)])
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    saved = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    saved.save_pretrained(folder)
    with (folder / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write(" " * LARGE)
    (folder / "tokenizer.model").write_bytes(trained_sentencepiece(True))
    return AutoTokenizer.from_pretrained(folder)


def packed(source: Path, out: Path) -> Tokenizer:
    out.mkdir()
    write_from_huggingface(source, out)
    return load_tokenizer(out)


@pytest.mark.parametrize("kind", ["each", "first", "never"])
def test_added_tokens_and_spaces_are_those_of_the_json(kind: str, tmp_path: Path) -> None:
    oracle = save(tmp_path / "saved", kind)
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "added_tokens_decoder" not in config
    ours = packed(tmp_path / "saved", tmp_path / "pack")
    assert (tmp_path / "pack" / "tokenizer.model").exists()
    assert ours.vocab_size == 803
    for text in TYPED:
        assert ours.encode(text, add_bos=False) == oracle(text, add_special_tokens=False).input_ids
    assert ours.encode("hi") == oracle("hi").input_ids
    start, end = (oracle.convert_tokens_to_ids(f"<|im_{name}|>") for name in ("start", "end"))
    assert not {start, end} & set(ours.encode("<|im_start|><|im_end|>", parse_special=False))
    assert ours.eos_ids == {2, 4, end}


def test_a_json_whose_head_tells_nothing_counts_itself(tmp_path: Path) -> None:
    """The model first, as no library writes it: then all of it is read."""
    oracle = save(tmp_path / "saved", "first")
    path = tmp_path / "saved" / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    turned = {key: values[key] for key in reversed(values)}
    path.write_text(json.dumps(turned) + " " * LARGE, encoding="utf-8")
    ours = packed(tmp_path / "saved", tmp_path / "pack")
    assert (tmp_path / "pack" / "tokenizer.json").exists()
    for text in TYPED:
        assert ours.encode(text, add_bos=False) == oracle(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("text", "head"),
    [
        ('{"a": 1, "b": [2], "model": {"vocab": 3}, "c": 4}', {"a": 1, "b": [2]}),
        (' \n{ "a" : {"model": 1}\n,"b":null }', {"a": {"model": 1}, "b": None}),
        ('{"a": 1, "b": [2, 3', {"a": 1}),
        ('{"a": 1 "b": 2}', {"a": 1}),
        ('{"a": 1, 5: 2}', {"a": 1}),
        ('{"a": ' + "[" * 100_000, {}),
        ('{"a": 1, "b": [' + "[]," * 1_000_000 + '0], "model": {}}', {"a": 1}),
        ("[1]", {}),
        ("", {}),
        ("\x00\xff", {}),
    ],
    ids=range(10),
)
def test_heads(text: str, head: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text, encoding="latin-1")
    assert read_head(tmp_path / "tokenizer.json") == head


@pytest.mark.parametrize("tokens", [[1], [{"id": "x", "content": "y"}], [{"id": 5}], {"a": 1}, 7])
def test_damaged_heads_are_refused(tokens: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    head = json.dumps({"added_tokens": tokens, "normalizer": 5, "pre_tokenizer": ["x"]})
    (source / "tokenizer.json").write_text(head[:-1] + ', "model": ' + " " * LARGE)
    (source / "tokenizer.model").write_bytes(trained_sentencepiece(True))
    with pytest.raises(TextError, match="damaged added tokens"):
        packed(source, tmp_path / "pack")
