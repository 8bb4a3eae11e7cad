"""picoedge's side of the LoRA rows. Jobs (JSON on the first line of stdin): `job_*`."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from bench import train_worker
from bench.lora.work import (
    ALPHA,
    BETAS,
    CLIP,
    EPSILON,
    LENGTH,
    RANK,
    RATE,
    ROWS,
    STEPS,
    TARGETS,
    WARMUP,
    windows,
)  # fmt: skip
from picoedge.engine.open import OpenPack, load_model, open_pack, open_session
from picoedge.engine.options import OpenOptions
from picoedge.engine.session import Session
from picoedge.model.transformer import LOGIT_ROWS
from picoedge.store.adapters import write_adapter
from picoedge.store.pack.reader import Pack
from picoedge.text.tokenizer.load import load_tokenizer
from picoedge.train.lora.frozen import FrozenModel
from picoedge.train.lora.layout import AdapterLayout
from picoedge.train.lora.run import LoraOptions, LoraRun, base_name, begin_lora
from picoedge.train.lora.settings import LoraSettings
from picoedge.train.run.folder import RunFolder
from picoedge.train.step.batch import Batch
from picoedge.train.step.trainer import TrainingState

SEED = 0
ANSWER_TOKENS = 48


def job_begin(pack: str, text: str, ids: str, adapter: str) -> int:
    """Write the text's ids (.npy), and the adapter that both sides begin with; how many ids."""
    opened = Pack.open(Path(pack))
    tokens = load_tokenizer(opened.path).encode(Path(text).read_text(encoding="utf-8"))
    np.save(ids, np.array(tokens, np.int32))
    settings = LoraSettings(rank=RANK, alpha=ALPHA, targets=TARGETS)
    layout = AdapterLayout.of(FrozenModel.of(opened), settings.shape)
    write_adapter(Path(adapter), layout.adapter(layout.initial(SEED), base_name(opened)))
    return len(tokens)


def job_speed(
    pack: str, text: str, ids: str, threads: int, memory_bytes: int | None = None
) -> None:
    """Steps when asked (see `train_worker.serve`), by what `picoedge finetune` runs."""
    with tempfile.TemporaryDirectory(prefix="picoedge-bench-") as scratch:
        out, folder = Path(scratch, "adapter"), RunFolder(Path(scratch, "adapter.run"))
        options = LoraOptions(out, threads, memory_bytes)
        with closing(folder):
            run = begin_lora(options, _settings(text), Pack.open(Path(pack)), folder, None)
            _serve(run, ids)


def _settings(text: str) -> LoraSettings:
    return LoraSettings(
        data=(text,), rank=RANK, alpha=ALPHA, targets=TARGETS, steps=STEPS, seed=SEED,
        length=LENGTH, batch=ROWS, learning_rate=RATE, clip=CLIP, held_out=0.0, rehearsal=0.0,
    )  # fmt: skip


def _serve(run: LoraRun, ids: str) -> None:
    settings = dataclasses.replace(run.settings, warmup=WARMUP).step_settings()
    assert (settings.tokens, settings.betas) == (ROWS * LENGTH, BETAS)
    assert (settings.epsilon, settings.clip, settings.weight_decay) == (EPSILON, CLIP, 0.0)
    tokens = np.load(ids)
    state = TrainingState.initial(run.layout, SEED)
    with closing(run.make_trainer(state, settings)) as trainer:

        def step(number: int) -> float:
            shape = settings.micro_batches, settings.sequences, LENGTH + 1
            return trainer.step(Batch.of_windows(windows(tokens, number).reshape(shape))).loss

        train_worker.serve(step)


def job_error(
    pack: str, adapter: str, texts: Sequence[Sequence[int]], reference: str
) -> dict[str, float]:
    """How far our logits with an adapter are from a reference's, the worst position's.

    `reference`: a folder of `N.npy`, f32 [tokens, vocabulary] of each text. Relative: the norm of
    the difference by that of the reference. `moved`: the same of our logits without the adapter,
    the least position's.
    """
    ours = {name: _logits(pack, name, texts) for name in (adapter, None)}
    with_it, without = (
        np.concatenate([
            np.linalg.norm(got - want, axis=1) / np.linalg.norm(want, axis=1)
            for got, want in zip(ours[name], _references(reference, len(texts)), strict=True)
        ])
        for name in (adapter, None)
    )  # fmt: skip
    return {"worst": float(with_it.max()), "moved": float(without.min())}


def _references(folder: str, count: int) -> list[Any]:
    return [np.load(Path(folder, f"{number}.npy")) for number in range(count)]


def _logits(pack: str, adapter: str | None, texts: Sequence[Sequence[int]]) -> list[Any]:
    opened = _opened(pack, adapter, text=False, logit_rows=LOGIT_ROWS)
    opened.suggest_context(max(map(len, texts)))
    with closing(load_model(opened.pack, opened.options)) as model:
        return [
            np.concatenate([rows.copy() for rows in model.forward_all(text, 0)]) for text in texts
        ]


def job_answers(pack: str, adapter: str | None, questions: Sequence[str]) -> list[str]:
    """The greedy answer to each question, asked in a chat of its own."""
    opened = _opened(pack, adapter, sampling={"temperature": 0.0})
    opened.suggest_context(1024)
    prompter = opened.prompter
    with closing(open_session(opened, load_model)) as session:
        return [
            _answer(session, prompter.chat([{"role": "user", "content": question}]))
            for question in questions
        ]


def _answer(session: Session, prompt: Any) -> str:
    return "".join(session.generate(prompt, max_tokens=ANSWER_TOKENS)).strip()


def _opened(pack: str, adapter: str | None, *, text: bool = True, **options: Any) -> OpenPack:
    opened = open_pack(Path(pack), OpenOptions(**options), text=text)
    if adapter is not None:
        opened.adapt(Path(adapter))
    return opened


JOBS: dict[str, Callable[..., Any]] = {
    "begin": job_begin, "speed": job_speed, "error": job_error, "answers": job_answers,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(train_worker.main(JOBS))
