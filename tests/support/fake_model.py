"""A model that says what it is told to say, and a tokenizer of bytes: sessions without weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from picoedge.cli.await_typing import Attend
from picoedge.config import SamplingOptions
from picoedge.engine.session import Prompter, Session
from picoedge.errors import StorageError
from picoedge.planner.memory import MemoryPlan
from picoedge.text.template.probe import TemplateFacts
from picoedge.text.tokenizer.base import SpecialTokens

EOS = 256
BOS = 257
VOCAB = 258
GREEDY = SamplingOptions(temperature=0)


class ByteTokenizer:
    """A token a byte, then end and beginning of text."""

    vocab_size = VOCAB
    bos_id: int | None = BOS
    eos_ids = frozenset({EOS})
    drops_first_space = False
    special_tokens = SpecialTokens({})
    warnings: tuple[str, ...] = ()

    def encode(self, text: str, *, add_bos: bool = True, parse_special: bool = True) -> list[int]:
        return [BOS] * add_bos + list(text.encode())

    def encode_parts(self, parts: Iterable[int | str]) -> list[int]:
        return [i for p in parts for i in ([p] if isinstance(p, int) else p.encode())]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def is_special(self, token: int) -> bool:
        return token >= 256


class PlainTemplate:
    """`user: hello` and so on, a line a message."""

    stops: tuple[str, ...] = ()
    variables = frozenset({"enable_thinking", "mood"})

    def probe(self) -> TemplateFacts:
        return TemplateFacts(thinking="enable_thinking", variables=self.variables)

    def render(
        self,
        messages: list[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
        variables: dict[str, object] | None = None,
    ) -> str:
        told = [f"{name}={value}\n" for name, value in (variables or {}).items()]
        lines = [*told, *(f"{m['role']}: {m['content']}\n" for m in messages)]
        return "".join(lines) + "assistant: " * add_generation_prompt


@dataclass
class FakeKernels:
    name: str = "fake"
    threads: int = 1


class ScriptedModel:
    """Answers the k-th prompt with the k-th of `answers`, then the end-of-text token.

    `runs` lists what was computed, as (position, tokens). A prompt is a run of several tokens, or
    one going back; generation is runs of one, each after the last. Run `fails_at` (counted
    from 0) raises StorageError instead.
    """

    fails_at: int | None = None
    boards = 1
    memory_plan: MemoryPlan | None = None
    tuner = None

    def __init__(self, *answers: str | Sequence[int], n_ctx: int = 1000) -> None:
        self.n_ctx, self.kernels = n_ctx, FakeKernels()
        self.runs: list[tuple[int, list[int]]] = []
        self.closed = False
        self.attend: Attend | None = None
        self.disk_wait_s, self.bytes_streamed, self.batch = 0.0, 0, 16
        self._next = -1
        self._answers = iter(answers)
        self._script: Iterator[int] = iter(())

    @property
    def slice(self) -> ScriptedModel:
        return self

    def forward(self, tokens: Sequence[int], position: int) -> np.ndarray:
        self.runs.append((position, list(tokens)))
        if len(self.runs) - 1 == self.fails_at:
            raise StorageError("layer-001.safetensors: reading failed", "check the card")
        assert tokens
        assert position + len(tokens) <= self.n_ctx
        if len(tokens) > 1 or position != self._next:
            answer = next(self._answers)
            self._script = iter(answer.encode() if isinstance(answer, str) else answer)
        self._next = position + len(tokens)
        logits = np.zeros(VOCAB, np.float32)
        logits[next(self._script, EOS)] = 30
        return logits

    def close(self) -> None:
        self.closed = True


class Ticks:
    """A clock that advances one second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def scripted_session(*answers: str | Sequence[int], n_ctx: int = 1000) -> Session:
    """A session whose model gives these answers, greedily."""
    model = ScriptedModel(*answers, n_ctx=n_ctx)
    return Session(model, ByteTokenizer(), GREEDY, name="parrot", clock=Ticks())


def prompter_for(session: Session) -> Prompter:
    """Prompts of bytes for a scripted session."""
    return Prompter("parrot", ByteTokenizer(), PlainTemplate(), session.model.n_ctx)  # type: ignore[arg-type]
