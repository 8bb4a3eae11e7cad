"""What a person types is encoded as its tokenizer's own library encodes plain text, in one run."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_models import END, START, bpe_metadata, load_sentencepiece, trained_sentencepiece

from picoedge.text.export.export import write_from_gguf, write_from_huggingface
from picoedge.text.template.template import ChatTemplate, encode_chat
from picoedge.text.tokenizer.base import Tokenizer
from picoedge.text.tokenizer.load import load_tokenizer

LLAMA2 = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
NAMES = ["<s>", "</s>", "<unk>", "<end_of_turn>", "<0x0A>", "▁", END, START, "<tool>", "\U000f0000"]
TYPED = st.lists(
    st.one_of(st.sampled_from([*NAMES, "10", " ", "  ", "\n", "the", "é中"]), st.text(max_size=5)),
    min_size=1,
    max_size=8,
).map("".join)


def said(tokenizer: Tokenizer, text: str) -> list[int]:
    template = ChatTemplate(LLAMA2, bos_token="<s>")
    return encode_chat(template, tokenizer, [{"role": "user", "content": text}])


@functools.cache
def sentencepiece(prefix: bool, legacy: bool) -> Tokenizer:
    config = {"bos_token": "<s>", "eos_token": "</s>", "legacy": legacy}
    with tempfile.TemporaryDirectory() as name:
        source, pack = Path(name, "source"), Path(name, "pack")
        source.mkdir()
        pack.mkdir()
        (source / "tokenizer.model").write_bytes(trained_sentencepiece(prefix))
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        write_from_huggingface(source, pack)
        return load_tokenizer(pack)


def plain(text: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in text)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@settings(max_examples=60)
@given(text=TYPED.filter(plain))
def test_sentencepiece(prefix: bool, legacy: bool, text: str) -> None:
    ours, theirs = sentencepiece(prefix, legacy), load_sentencepiece(trained_sentencepiece(prefix))
    run = f"[INST] {text} [/INST]"
    if prefix and not legacy:
        # The one space that is due stands before the text, and that begins with BOS here.
        anchored = theirs.encode("\n" + run)
        begin = theirs.encode("\n")
        assert anchored[: len(begin)] == begin
        assert said(ours, text) == [1, *anchored[len(begin) :]]
    else:
        assert said(ours, text) == [1, *theirs.encode(run)]


@functools.cache
def json_files(kind: str) -> tuple[Tokenizer, Any]:
    """Our tokenizer and the library's, of one tokenizer.json."""
    import tokenizers

    with tempfile.TemporaryDirectory() as name:
        source, pack = Path(name, "source"), Path(name, "pack")
        source.mkdir()
        pack.mkdir()
        if kind == "bytes":
            write_from_gguf(bpe_metadata("smollm"), source)
            (source / "tokenizer_config.json").write_text('{"bos_token":"<|im_start|>"}')
        else:
            (source / "tokenizer.json").write_text(llama_json(kind), encoding="utf-8")
            config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
            (source / "tokenizer_config.json").write_text(json.dumps(config))
        write_from_huggingface(source, pack)
        library = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
        return load_tokenizer(pack), library


def llama_json(kind: str) -> str:
    """Llama's own tokenizer.json in its two forms: a space before each part, or the first alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = ["▁", "h", "i", "t", "e", "s", "<", ">", "/", "[", "]", "1", "0"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    words = ["▁h", "▁hi", "▁t", "he", "▁the", "s>", "<s>x"]
    vocab |= {text: 259 + i for i, text in enumerate([*letters, *words])}
    merges = [("▁", "h"), ("▁h", "i"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("s", ">")]
    made = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if kind == "each":
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(parts)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    made.add_special_tokens(["<unk>", "<s>", AddedToken("</s>", rstrip=True)])
    return str(made.to_str())


@pytest.mark.parametrize("kind", ["each", "first"])
@settings(max_examples=60)
@given(text=TYPED.filter(plain))
def test_tokenizer_json(kind: str, text: str) -> None:
    ours, theirs = json_files(kind)
    run = f"[INST] {text} [/INST]"
    # The library cannot read one name as a token and the next as text: another token stands for it.
    theirs.encode_special_tokens = True
    if kind == "each":
        expected = theirs.encode(run, add_special_tokens=False).ids
    else:
        theirs.add_tokens(["\x01begin"])
        expected = theirs.encode("\x01begin" + run, add_special_tokens=False).ids[1:]
    assert said(ours, text) == [1, *expected]


@settings(max_examples=60)
@given(text=TYPED.filter(plain))
def test_byte_level(text: str) -> None:
    ours, theirs = json_files("bytes")
    theirs.encode_special_tokens = True
    template = ChatTemplate("<|im_start|>{{ messages[0]['content'] }}<|im_end|>")
    ids = encode_chat(template, ours, [{"role": "user", "content": text}])
    assert ids == [1, *theirs.encode(text, add_special_tokens=False).ids, 2]


def test_flags_of_special_tokens_hold_beside_typed_names() -> None:
    """Phi's tokens take the white space after them: with a name typed, and without."""
    ours, _ = json_files("each")
    template = ChatTemplate("</s>\n{{ messages[0]['content'] }}</s>\nhi")
    quiet, typed = (
        encode_chat(template, ours, [{"role": "user", "content": text}]) for text in ("hi", "hi<s>")
    )
    after = ours.encode("hi", add_bos=False)
    assert quiet == [1, 2, *after, 2, *after]
    assert typed[:2] == [1, 2]
    assert typed[-len(after) - 1 :] == [2, *after]
    assert typed[2 : 2 + len(after)] == after
