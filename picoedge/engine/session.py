"""One conversation: a model, its vocabulary, a sampler, and what the cache already holds.

    session.generate(prompt_ids)   yields text as it comes; `session.stats` says how it went

The cache is known by the tokens in it. A prompt that begins as the last one did (the next turn
of a chat) runs only what is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from picoedge.engine.prompt import check_prompt
from picoedge.errors import PicoedgeError
from picoedge.kernels.arrays import F32
from picoedge.model.sampling import Sampler, SamplingOptions
from picoedge.text.tokenizer.stream_decoder import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from picoedge.engine.adapt import Adapter
    from picoedge.planner.memory import MemoryPlan
    from picoedge.text.tokenizer.base import Vocabulary


PREFILL_CHUNK = 256  # tokens between two looks at whether the answer is still wanted


class KernelsInfo(Protocol):
    """What there is to say of the kernels."""

    name: str
    threads: int


class LanguageModel(Protocol):
    """What a session needs of a model (`model.transformer.Transformer`)."""

    n_ctx: int

    @property
    def batch(self) -> int:
        """Tokens it runs at once."""

    @property
    def boards(self) -> int:
        """How many boards run it."""

    @property
    def kernels(self) -> KernelsInfo:
        """What computes."""

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits f32 [vocab] after `tokens` put at `position`; earlier cache is kept."""

    @property
    def disk_wait_s(self) -> float:
        """Seconds spent so far waiting for weights to come from storage."""

    @property
    def bytes_streamed(self) -> int:
        """Bytes of weights read from storage so far, to be used once."""

    def close(self) -> None:
        """Free threads and memory."""


@dataclass
class Stats:
    """How one answer went. Seconds by the session's clock."""

    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, found in the cache
    tokens: list[int] = field(default_factory=list)  # generated, without the end-of-text token
    finish_reason: str = ""  # "stop", "length", "cancelled" or "error"
    context_full: bool = False  # "length" because the context ended
    ttft_s: float = 0.0
    decode_s: float = 0.0  # after the first token
    decode_steps: int = 0  # tokens chosen after the first
    disk_wait_s: float = 0.0  # of decode_s, spent waiting for weights
    bytes_streamed: int = 0  # in decode_s, of weights

    @property
    def prefill_tok_s(self) -> float | None:
        """Prompt tokens run a second."""
        new = self.prompt_tokens - self.reused_tokens
        return new / self.ttft_s if self.ttft_s > 0 else None

    @property
    def s_per_token(self) -> float | None:
        """Seconds a token, decoding only; None before the second token."""
        return self.decode_s / self.decode_steps if self.decode_steps else None

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens a second, decoding only."""
        return 1 / self.s_per_token if self.s_per_token else None


class Session:
    """One conversation. Not for two threads at once, but `cancel` may come from anywhere."""

    def __init__(
        self,
        model: LanguageModel,
        vocabulary: Vocabulary,
        sampling: SamplingOptions | None = None,
        *,
        name: str = "model",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.name, self._vocabulary = model, name, vocabulary
        self.stats = Stats()
        self._clock = clock
        self.plan: MemoryPlan | None = None  # for who wants to know; None: nothing is streamed
        self.adapter: Adapter | None = None  # has what the plan has become
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache
        self._cancelled = False
        self.set_sampling(sampling or SamplingOptions())

    @property
    def kernels_name(self) -> str:
        """What computes: `numpy`, or the level of the C kernels (`avx2`, `dotprod`)."""
        return self.model.kernels.name

    def describe(self) -> str:
        """One line for people: `smollm2-135m · avx2, 2 threads · context 4096`."""
        kernels = self.model.kernels
        threads = f"{kernels.threads} thread{'s' if kernels.threads > 1 else ''}"
        return f"{self.name} · {kernels.name}, {threads} · context {self.model.n_ctx}"

    def set_sampling(self, options: SamplingOptions) -> None:
        """Choose differently from now on; a seed begins anew."""
        self.sampling = options
        self._sampler = Sampler(options)

    def cancel(self) -> None:
        """Stop the answer at the next token. Safe in a signal handler."""
        self._cancelled = True

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        continues: bool = False,
    ) -> Iterator[str]:
        """Yield the answer's text in pieces, none empty; `stats` is filled meanwhile.

        Ends with finish_reason "stop" (end-of-text token or a stop string), "length"
        (max_tokens, or the context is full) or "cancelled". `continues`: the text goes on from
        the prompt's, so a space it begins with is kept. Raises ContextError at once where the
        prompt leaves no room for a token. What breaks an answer off (StorageError) is raised
        after the text there is, with finish_reason "error".
        """
        prompt = list(prompt_ids)
        check_prompt(prompt, self.model.n_ctx)
        self.stats, self._cancelled = Stats(prompt_tokens=len(prompt)), False
        decoder = StreamDecoder(self._vocabulary, start_of_text=not continues)
        limit = self.model.n_ctx + 1 if max_tokens is None else max_tokens
        eos = frozenset[int]() if ignore_eos else self._vocabulary.eos_ids
        tokens = self._tokens(prompt, limit, eos)
        return self._texts(tokens, decoder, StopStrings(stop))

    def _texts(
        self, tokens: Iterator[int], decoder: StreamDecoder, stops: StopStrings
    ) -> Iterator[str]:
        failed: PicoedgeError | None = None
        try:
            for token in tokens:
                text, stopped = stops.push(decoder.push(token))
                if text:
                    yield text
                if stopped:
                    self.stats.finish_reason = "stop"
                    return
        except PicoedgeError as error:
            self.stats.finish_reason, failed = "error", error
        text, stopped = stops.push(decoder.flush())
        text += "" if stopped else stops.flush()
        if text:
            yield text
        if failed is not None:
            raise failed

    def _tokens(self, prompt: list[int], limit: int, eos: frozenset[int]) -> Iterator[int]:
        """Generated ids, one by one; what ended them is in `stats` when they end."""
        stats, cached, history = self.stats, self._cached, list(prompt)
        forward, pick, clock = self.model.forward, self._sampler.pick, self._clock
        began = clock()
        logits = self._prefill(prompt)
        if logits is None or self._ended(limit):
            return
        token = pick(logits, history)
        first = clock()
        stats.ttft_s = first - began
        waited, streamed = self.model.disk_wait_s, self.model.bytes_streamed
        while token not in eos:
            stats.tokens.append(token)
            history.append(token)
            yield token
            if self._ended(limit):
                return
            logits = forward((token,), len(cached))
            cached.append(token)
            token = pick(logits, history)
            stats.decode_steps += 1
            stats.decode_s = clock() - first
            stats.disk_wait_s = self.model.disk_wait_s - waited
            stats.bytes_streamed = self.model.bytes_streamed - streamed
        stats.finish_reason = "stop"

    def _ended(self, limit: int) -> bool:
        """Whether no further token is to come; `stats` then says why."""
        stats = self.stats
        if self._cancelled:
            stats.finish_reason = "cancelled"
        elif len(stats.tokens) >= limit:
            stats.finish_reason = "length"
        elif len(self._cached) >= self.model.n_ctx:
            stats.finish_reason, stats.context_full = "length", True
        return bool(stats.finish_reason)

    def _prefill(self, prompt: list[int]) -> F32 | None:
        """Run what the cache does not hold; logits f32 [vocab], or None if cancelled."""
        position = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        self.stats.reused_tokens = position
        del self._cached[position:]
        logits = None
        while position < len(prompt):
            if self._cancelled:
                self.stats.finish_reason = "cancelled"
                return None
            chunk = prompt[position : position + max(PREFILL_CHUNK, self.model.batch)]
            logits = self.model.forward(chunk, position)
            self._cached.extend(chunk)
            position += len(chunk)
        return logits

    def forget(self) -> None:
        """Drop the cache's contents; the next prompt runs whole."""
        self._cached.clear()

    def close(self) -> None:
        """Free the model's threads and memory. Idempotent."""
        self.model.close()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
