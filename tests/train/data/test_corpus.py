"""The tokens of a text: written once, held out by passages, read in windows."""

from __future__ import annotations

import errno
import json
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from training_text import english

from picoedge.errors import DataError, ModelError, StorageError
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.data import token_files
from picoedge.train.data.corpus import (
    Corpus,
    CorpusSettings,
    copy_tokenizer,
    prepare_corpus,
    write_corpus,
)
from picoedge.train.data.source import TokenSource
from picoedge.train.data.survey import survey_texts
from picoedge.train.data.texts import Texts, find_texts
from picoedge.train.data.token_files import TokenWriter
from picoedge.train.data.tokenizer import TokenizerModel, train_tokenizer
from picoedge.train.data.windows import CorpusSource

LENGTH = 32
SETTINGS = CorpusSettings(LENGTH, seed=3)


class Site(NamedTuple):
    folder: Path  # of the test
    texts: Texts
    model: TokenizerModel

    def corpus(self, settings: CorpusSettings = SETTINGS, name: str = "data", **how: int) -> Corpus:
        survey = survey_texts(self.texts, settings.seed)
        return write_corpus(self.texts, survey, self.model, self.folder / name, settings, **how)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    text = tmp_path / "text"
    text.mkdir()
    for i in range(6):
        (text / f"{i}.txt").write_text(english(700, seed=i) + f" file {i} <s> here")
    talk = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A </s> B."}]
    (text / "talk.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 5))
    texts = find_texts([text])
    return Site(tmp_path, texts, train_tokenizer(survey_texts(texts, 0).sample, 512))


def all_tokens(corpus: Corpus, *, held_out: bool = False) -> list[int]:
    with corpus.reader(held_out=held_out) as reader:
        return reader.read(0, len(reader)).tolist()


def test_all_text_is_there_and_documents_begin_and_end(site: Site) -> None:
    corpus = site.corpus(CorpusSettings(LENGTH, 3, held_out=0))
    ids, tokenizer = all_tokens(corpus), load_tokenizer(corpus.folder)
    assert corpus.held_out_tokens == 0
    bos, eos = tokenizer.bos_id, tokenizer.encode("</s>", add_bos=False)[0]
    assert ids.count(bos or 0) == ids.count(eos) == 6 + 5
    documents = tokenizer.decode(ids, skip_special=False).removesuffix("</s>").split("</s><s>")
    assert documents[2] == (site.folder / "text/2.txt").read_text()
    assert documents[-1] == (
        "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\nA </s> B.<|im_end|>\n"
    )
    assert corpus.documents == 11


def test_neither_threads_nor_batches_change_a_byte(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = site.corpus()
    monkeypatch.setattr("picoedge.train.data.corpus._AT_ONCE", 3000)
    monkeypatch.setattr("picoedge.train.data.token_files._BUFFERED", 50)
    two = site.corpus(name="again", threads=2)
    assert one.facts() == two.facts()
    assert Corpus.open(one.folder) == one


def test_a_part_is_held_out_and_no_step_sees_it(site: Site) -> None:
    everything = site.corpus(CorpusSettings(LENGTH, 3, held_out=0), name="all")
    corpus = site.corpus()
    train, held_out = all_tokens(corpus), all_tokens(corpus, held_out=True)
    assert len(train) + len(held_out) == everything.tokens
    assert LENGTH < len(held_out) < 0.25 * everything.tokens
    other = site.corpus(CorpusSettings(LENGTH, seed=4), name="other")
    assert all_tokens(other, held_out=True) != held_out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("word " * 20, "too little text"),
        (" \n", "blanks alone"),
    ],
)
def test_too_little_text_is_refused_and_nothing_left(site: Site, text: str, message: str) -> None:
    path = site.folder / "small.txt"
    path.write_text(text)
    small = site._replace(texts=find_texts([path]))
    with pytest.raises(DataError, match=message):
        small.corpus(name="small")
    assert not [p for p in site.folder.iterdir() if p.name.startswith("small.") and p.is_dir()]
    assert not (site.folder / "small").exists()


def test_too_little_for_the_held_out_part_says_so(site: Site) -> None:
    with pytest.raises(DataError, match=r"too little text for a part that is held out|to train on"):
        site.corpus(CorpusSettings(9000, seed=3))


def test_text_that_changes_meanwhile_is_noticed(site: Site) -> None:
    survey = survey_texts(site.texts, 3)
    with (site.folder / "text/talk.jsonl").open("a") as file:
        file.write('\n{"text": "more"}')
    with pytest.raises(DataError, match="changed while it was read"):
        write_corpus(site.texts, survey, site.model, site.folder / "data", SETTINGS)
    assert not (site.folder / "data").exists()


def test_a_folder_in_the_way_is_left_alone(site: Site) -> None:
    (site.folder / "data").mkdir()
    (site.folder / "data/mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists"):
        site.corpus()
    assert (site.folder / "data/mine.txt").read_text() == "mine"


def test_files_end_where_they_are_full(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_tokens(site.corpus())
    monkeypatch.setattr(token_files, "FILE_TOKENS", 1000)
    corpus = site.corpus(name="short")
    assert len(corpus.train) == -(-len(whole) // 1000)
    assert all_tokens(corpus) == whole
    with corpus.reader() as reader:
        assert reader.read(990, 20).tolist() == whole[990:1010]
        around = [*whole[-10:], *whole[:10]]
        assert reader.read(len(whole) - 10, 20).tolist() == around


def test_a_damaged_corpus_is_refused(site: Site) -> None:
    corpus = site.corpus()
    path = corpus.folder / corpus.train[0].name
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    with pytest.raises(ModelError, match="bytes, not"):
        corpus.reader()
    path.write_bytes(b"\xff\xff" + good[2:])
    with pytest.raises(ModelError, match="other content"):
        corpus.reader()
    with (
        corpus.reader(verify=False) as reader,
        pytest.raises(ModelError, match="damaged at byte 0"),
    ):
        reader.read(0, 5)  # a token that no embedding has
    path.unlink()
    with pytest.raises(ModelError, match="does not exist"):
        corpus.reader()
    facts = corpus.facts()
    for damage in (
        {"version": 2}, {"vocab_size": 0}, {"train": [{**facts["train"][0], "name": "../x"}]},
        {"train": 3}, {"tokenizer": None},
    ):  # fmt: skip
        (corpus.folder / "corpus.json").write_text(json.dumps({**facts, **damage}))
        with pytest.raises(ModelError):
            Corpus.open(corpus.folder)


def test_each_epoch_goes_over_all_tokens_and_steps_need_no_state(site: Site) -> None:
    corpus = site.corpus()
    with closing(CorpusSource(corpus, 2, 3, LENGTH, seed=5)) as source:
        known: TokenSource = source
        count = corpus.tokens // LENGTH
        assert known.tokens_per_epoch == count * LENGTH
        steps = 2 * count // 6 + 1
        windows = np.concatenate([known.batch(step).tokens for step in range(1, steps + 1)])
        windows = windows.reshape(-1, LENGTH)
        whole = np.array(all_tokens(corpus))[: count * LENGTH].reshape(-1, LENGTH)
        assert sorted(map(tuple, windows[:count])) == sorted(map(tuple, whole))
        second = windows[count : 2 * count]
        assert sorted(map(tuple, second)) != sorted(map(tuple, whole))  # cut at other places
        batch = known.batch(2)
        assert batch.tokens.shape == batch.targets.shape == (2, 3, LENGTH)
        assert (batch.tokens[..., 1:] == batch.targets[..., :-1]).all()
    with closing(CorpusSource(corpus, 2, 3, LENGTH, seed=5)) as again:
        assert again.batch(2).tokens.tobytes() == batch.tokens.tobytes()
        assert again.describe() == known.describe()
    with closing(CorpusSource(corpus, 2, 3, LENGTH, seed=6)) as other:
        assert other.batch(2).tokens.tobytes() != batch.tokens.tobytes()


def test_held_out_batches_count_each_target_once(site: Site) -> None:
    corpus = site.corpus()
    with closing(CorpusSource(corpus, 2, 3, LENGTH, seed=5)) as source:
        held_out = all_tokens(corpus, held_out=True)
        assert sum(batch.targets_counted for batch in source.held_out) == len(held_out) - 1
        targets = np.concatenate([batch.targets.ravel() for batch in source.held_out])
        assert targets[targets >= 0].tolist() == held_out[1:]
        assert all(batch.tokens.shape[1:] == (3, LENGTH) for batch in source.held_out)


def test_text_becomes_a_corpus_in_one_call(site: Site) -> None:
    write = site.folder / "text/passed.py"
    write.write_text("x")
    folder = site.folder / "run"
    corpus, notes = prepare_corpus([site.folder / "text"], folder, 16384, SETTINGS)
    assert corpus == Corpus.open(folder)
    assert "1 file, of another kind" in notes[0]
    assert f"{corpus.vocab_size} is taken" in notes[1]
    pack = site.folder / "pack"
    pack.mkdir()
    copy_tokenizer(corpus, pack)
    assert load_tokenizer(pack).vocab_size == corpus.vocab_size
    again, _ = prepare_corpus([site.folder / "text"], site.folder / "again", 16384, SETTINGS)
    assert again.facts() == corpus.facts()


def test_a_full_disk_leaves_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TokenWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(path.name for path in site.folder.iterdir())
    monkeypatch.setattr(TokenWriter, "_write", full)
    with pytest.raises(StorageError, match="no room in"):
        site.corpus()
    assert sorted(path.name for path in site.folder.iterdir()) == before
