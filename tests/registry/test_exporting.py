"""Trained packs in other programs: transformers loads the folder, our own reader the GGUF."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shelf_models
from gguf import GGUFReader
from trained_packs import TEMPLATE, trained_pack
from transformers_models import reference_logits, reference_model, relative_error

from picoedge.cli.main import main
from picoedge.engine.open import load_model
from picoedge.engine.options import OpenOptions
from picoedge.kernels.arrays import F32
from picoedge.registry import exporting
from picoedge.registry.packing import pack_model
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.load import load_tokenizer

TEXTS = ("Boards of one network", "  spaces  and\n\nlines ", "café 日本 🙂 12345", "")
TOKENS = [1, 300, 7, 512, 1023, 42, 99, 8, 300, 301]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return trained_pack(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def folder(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    assert exporting.export_pack(pack, out, "hf") == []
    return out


@pytest.fixture(scope="module")
def gguf(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    assert exporting.export_pack(pack, out, "gguf") == []
    return out


def logits(pack: Pack) -> F32:
    """After every token."""
    with closing(load_model(pack, OpenOptions(threads=1, n_ctx=64))) as model:
        return np.concatenate([rows.copy() for rows in model.forward_all(TOKENS, 0)])


def test_transformers_has_the_same_logits(pack: Pack, folder: Path) -> None:
    theirs = reference_logits(reference_model(folder), TOKENS)
    assert relative_error(theirs, logits(pack)) < 1e-4


def test_transformers_has_the_same_tokens(pack: Pack, folder: Path) -> None:
    import transformers

    ours = load_tokenizer(pack.path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    assert len(theirs) == ours.vocab_size
    messages = [{"role": "user", "content": "Which board?"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s>user\nWhich board?</s><s>assistant\n"
    assert theirs.chat_template == TEMPLATE
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, [2])


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_read_again_it_has_the_same_bits_and_tokens(
    pack: Pack, folder: Path, gguf: Path, tmp_path: Path, form: str
) -> None:
    pack_model(folder if form == "hf" else gguf, tmp_path / "again.pico", bits=32)
    again = Pack.open(tmp_path / "again.pico")
    epsilon = pack.config.rms_norm_eps  # f32 in a GGUF
    assert again.config.rms_norm_eps == pytest.approx(epsilon, rel=1e-6)
    assert replace(again.config, rms_norm_eps=epsilon) == pack.config
    np.testing.assert_array_equal(logits(again), logits(pack))
    ours, theirs = load_tokenizer(pack.path), load_tokenizer(again.path)
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.eos_ids == ours.eos_ids
    template = (again.path / "chat_template.jinja").read_text()
    assert template == TEMPLATE


def test_the_library_reads_the_gguf(pack: Pack, gguf: Path) -> None:
    reader = GGUFReader(gguf)
    assert reader.get_field("tokenizer.ggml.model").contents() == "llama"
    assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == 1024
    assert reader.get_field("tokenizer.ggml.token_type").contents()[:4] == [2, 3, 3, 6]
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(by_name["output_norm.weight"].data, pack.final_norm)
    assert by_name["blk.3.ffn_down.weight"].shape.tolist() == [352, 128]


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_model_with_a_byte_level_tokenizer(tmp_path: Path, form: str) -> None:
    pack_model(shelf_models.write_gguf(tmp_path / "tiny.gguf"), tmp_path / "tiny.pico", bits=8)
    path, out = tmp_path / "tiny.pico", tmp_path / "out"
    assert main(["export", str(path), "--to", form, "-o", str(out)]) == 0
    pack_model(out, tmp_path / "again.pico", bits=32)
    ours, theirs = Pack.open(path), Pack.open(tmp_path / "again.pico")
    assert (theirs.config.vocab_size, theirs.config.tie_word_embeddings) == (257, True)
    assert relative_error(logits_of_tiny(theirs), logits_of_tiny(ours)) < 0.05
    text = "Any bytes: \x00 abab é 🙂"
    assert load_tokenizer(theirs.path).encode(text) == load_tokenizer(path).encode(text)


def test_a_tokenizer_without_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = shelf_models.packed_tiny(tmp_path), tmp_path / "out"
    assert main(["export", str(path), "--to", "gguf", "-o", str(out)]) == 1
    assert "cannot be exported to GGUF (export it to Hugging Face" in capsys.readouterr().err
    assert not out.exists()


def logits_of_tiny(pack: Pack) -> F32:
    with closing(load_model(pack, OpenOptions(threads=1, n_ctx=16))) as model:
        return model.forward([3, 141, 59], 0).copy()


@pytest.mark.parametrize("form", ["hf", "gguf"])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "dangling link"])
def test_nothing_is_replaced(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, kind: str
) -> None:
    out = tmp_path / "out"
    make: dict[str, Callable[[], object]] = {
        "file": lambda: out.write_text("dear"),
        "folder": lambda: (out.mkdir(), (out / "letter").write_text("dear")),
        "empty folder": out.mkdir,
        "dangling link": lambda: out.symlink_to(tmp_path / "nowhere"),
    }
    make[kind]()
    before = sorted(map(str, tmp_path.rglob("*")))
    assert main(["export", str(pack.path), "--to", form, "--out", str(out)]) != 0
    error = capsys.readouterr().err
    assert f"{out} exists" in error
    assert error.count("\n") == 1
    assert sorted(map(str, tmp_path.rglob("*"))) == before


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_disk_that_fills_up_leaves_nothing(
    pack: Pack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    written = 0

    def wrote(nbytes: int) -> None:
        nonlocal written
        written += nbytes
        if written > 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(exporting, "_told", lambda *_: wrote)
    assert main(["export", str(pack.path), "--to", form, "-o", str(tmp_path / "out")]) == 1
    assert "no room in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_disk_too_small_is_told_before_anything_is_written(
    pack: Pack,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    full = os.statvfs_result((4096, 4096, 10**6, 1, 1, 10**6, 1, 1, 0, 255))
    monkeypatch.setattr("picoedge.files.os.statvfs", lambda path: full)
    assert main(["export", str(pack.path), "--to", form, "-o", str(tmp_path / "out")]) == 1
    assert "needed, 4 KB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["x" * 300, "a/b/../c/new", "name\nwith lines", "\udcff\udcfe"], ids=range(4)
)
def test_odd_names_are_names(
    pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code = main(["export", str(pack.path), "--to", "gguf", "-o", str(tmp_path / name)])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if len(name) > 255:
        assert code == 1
        assert "cannot write below" in error
        assert list(tmp_path.iterdir()) == []
    else:
        assert code == 0
        assert (tmp_path / name).stat().st_size > 1 << 20


def test_a_model_name_is_text_whatever_it_holds(pack: Pack, tmp_path: Path) -> None:
    """The name is of another person's making: it is written as a value, never as a path."""
    manifest = json.loads((pack.path / "picoedge.json").read_text())
    copy = tmp_path / "copy.pico"
    shutil.copytree(pack.path, copy)
    (copy / "picoedge.json").write_text(json.dumps({**manifest, "name": "../../etc/\x1b[31m"}))
    out = tmp_path / "out.gguf"
    exporting.export_pack(Pack.open(copy), out, "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.pico", "out.gguf"]


def test_usage_errors(pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    for arguments, said in (
        (["export", str(pack.path), "--to", "onnx", "-o", out], "onnx"),
        (["export", str(pack.path), "--to", "hf"], "--out"),
        (["export", "no-such-model", "--to", "hf", "-o", out], "no-such-model"),
        (["export", str(tmp_path), "--to", "hf", "-o", out], str(tmp_path)),
    ):
        assert main(arguments) in (1, 2)
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
