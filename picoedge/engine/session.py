"""One conversation: prompts, a model, its vocabulary, a sampler, and the tokens in the cache.

    prompt = prompter.chat([{"role": "user", "content": "Hello"}])
    session.generate(prompt)   yields text as it comes; `session.stats` has the timings

A prompt that begins like the previous one (the next turn of a chat) computes only its new tokens.
Many conversations over one model would share the cache here: `Session` is where a fork or a store
of prefixes belongs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from picoedge.config import SamplingOptions
from picoedge.errors import ContextError, PicoedgeError, TextError, UsageError
from picoedge.kernels.arrays import F32
from picoedge.model.sampling import Sampler
from picoedge.suggest import did_you_mean
from picoedge.text.tokenizer.stream_decoder import StopStrings, StreamDecoder

if TYPE_CHECKING:
    from picoedge.engine.fit import LoadedModel
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.base import Tokenizer
    from picoedge.text.tokenizer.stream_decoder import Vocabulary


PREFILL_CHUNK = 256  # prompt tokens between two looks at `cancel`
_TAG_TOKENS = 8  # of `<think>` and a few line ends, at most
LONG_TOKEN = 16  # characters; a text seldom has fewer than n / 16 tokens


@dataclass(frozen=True)
class Prompt:
    """Token ids to answer. `continues`: the answer continues the prompt's own text, so that a
    space it begins with is kept.
    """

    ids: list[int]
    continues: bool = False
    stops: tuple[str, ...] = ()  # texts that end the answer

    def checked(self, n_ctx: int) -> Prompt:
        """Itself. Raises TextError where it is empty, ContextError without room for a token."""
        if not self.ids:
            raise TextError("the prompt is empty", "write something")
        if len(self.ids) >= n_ctx:
            raise _too_long(str(len(self.ids)), n_ctx)
        return self


@dataclass(frozen=True)
class Prompter:
    """Makes prompts for a model called `name` whose context has `n_ctx` positions."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    n_ctx: int
    variables: Mapping[str, Any] = field(default_factory=dict)  # the template's own
    pack: Path | None = None

    def chat(self, messages: list[dict[str, str]]) -> Prompt:
        """The prompt for the next message of a conversation. Raises TextError, ContextError."""
        ids, template = self.chat_ids(messages), self.require_template()
        return Prompt(ids, stops=template.stops).checked(self.n_ctx)

    def begins_thinking(self, prompt: Prompt) -> bool:
        """Whether a prompt itself ends with the tag that thinking begins with."""
        end = self.tokenizer.decode(prompt.ids[-_TAG_TOKENS:], skip_special=False)
        return end.rstrip().endswith("<think>")

    def with_template(self, word: str) -> Prompter:
        """A prompter by the template that `word` names, a name or a file, from now on kept beside
        the pack. Raises UsageError, TextError, StorageError.
        """
        from picoedge.text.template.chosen import OWN, choose_template, end_answers, keep_template

        assert self.pack is not None
        template = choose_template(self.pack, word)
        if template is not None and template.chosen:
            end_answers(template, self.tokenizer)
        keep_template(self.pack, None if word == OWN else template)
        return replace(self, template=template)

    def with_thinking(self, thinks: bool) -> Prompter:
        """A prompter whose prompts ask for thinking, or for none. Raises UsageError."""
        switch = self.require_template().probe().thinking
        if not switch:
            raise UsageError(
                f"the chat template of {self.name} has no switch for thinking",
                "picoedge show tells which variables it reads",
            )
        return replace(self, variables={**self.variables, switch: thinks})

    def with_variable(self, name: str, value: Any) -> Prompter:
        """A prompter with a variable of the template set; None: no longer. Raises UsageError."""
        known = self.require_template().probe().variables
        if name not in known:
            hint = did_you_mean(name, known) or f"it reads {', '.join(sorted(known)) or 'none'}"
            raise UsageError(f"the chat template of {self.name} reads no variable {name!r}", hint)
        others = {key: other for key, other in self.variables.items() if key != name}
        return replace(self, variables=others if value is None else {**others, name: value})

    def notes(self, messages: list[dict[str, str]]) -> list[str]:
        """The template's surprises with these messages (a dropped system message …), a sentence
        each. Raises TextError where it drops the question.
        """
        return self.require_template().probe().notes(messages)

    def complete(self, text: str) -> Prompt:
        """The prompt to continue a plain text. Raises TextError, ContextError."""
        return Prompt(self.encode(text), continues=True).checked(self.n_ctx)

    def chat_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation by the chat template. Raises TextError, ContextError.

        Message contents are plain text, also where they spell a special token.
        """
        from picoedge.text.template.template import encode_chat

        template = self.require_template()
        self._refuse_far_too_long("\n".join(message["content"] for message in messages))
        return encode_chat(template, self.tokenizer, messages, variables=self.variables)

    def require_template(self) -> ChatTemplate:
        """The chat template. Raises TextError where there is none, or it drops the question."""
        if self.template is None:
            raise TextError(
                f"{self.name} has no chat template",
                "--chat-template NAME gives it one; picoedge generate --raw completes plain text",
            )
        self.template.probe()
        return self.template

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text. Raises ContextError for one far too long."""
        self._refuse_far_too_long(text)
        return self.tokenizer.encode(text)

    def _refuse_far_too_long(self, text: str) -> None:
        """Before all of it is encoded: megabytes of text would take gigabytes of memory."""
        limit = self.n_ctx * LONG_TOKEN
        while len(text) > limit:
            count = len(self.tokenizer.encode(text[:limit]))
            if count > self.n_ctx + LONG_TOKEN:  # the cut may have made a few tokens too many
                raise _too_long(f"about {count * len(text) // limit}", self.n_ctx)
            limit *= 4


def _too_long(count: str, n_ctx: int) -> ContextError:
    return ContextError(
        f"the prompt has {count} tokens, the context {n_ctx}, and an answer needs at least one",
        "take a larger --ctx-size, or a shorter text",
    )


class LanguageModel(Protocol):
    """A model as a session uses it: a `LoadedModel` on this board, a `ClusterModel` over boards."""

    n_ctx: int

    @property
    def slice(self) -> LoadedModel:
        """This board's part of the model at present: all, or a slice."""

    @property
    def boards(self) -> int:
        """The number of boards that run it."""

    def forward(self, tokens: Sequence[int], position: int) -> F32:
        """Logits f32 [vocab] after `tokens` put at `position`; earlier cache is kept."""

    @property
    def disk_wait_s(self) -> float:
        """Seconds spent so far waiting for weights to come from storage."""

    @property
    def bytes_streamed(self) -> int:
        """Bytes of weights streamed from storage so far."""

    @property
    def attend(self) -> Callable[[Callable[[], None]], None] | None:
        """Keeps the model whole between questions, if that takes anything.

        It calls its argument before it writes lines.
        """

    def close(self) -> None:
        """Free threads and memory."""


@dataclass
class Stats:
    """Counts and timings of one answer, in seconds of the session's clock."""

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
        """Computed prompt tokens a second."""
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
    """One conversation. For one thread at a time; `cancel` may be called from any."""

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
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache
        self._cancelled = False
        self.set_sampling(sampling or SamplingOptions())

    def describe(self) -> str:
        """One line for people: `smollm2-135m · avx2, 2 threads · context 4096`."""
        kernels = self.model.slice.kernels
        threads = f"{kernels.threads} thread{'s' if kernels.threads > 1 else ''}"
        return f"{self.name} · {kernels.name}, {threads} · context {self.model.n_ctx}"

    def set_sampling(self, options: SamplingOptions) -> None:
        """Sample by `options` from the next answer on; a seed starts again."""
        self.sampling = options
        self._sampler = Sampler(options)

    def cancel(self) -> None:
        """Stop the answer at the next token. Safe in a signal handler."""
        self._cancelled = True

    def generate(
        self,
        prompt: Prompt | Sequence[int],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Iterator[str]:
        """Yield the answer's text in non-empty pieces; `stats` is filled meanwhile.

        Ends with finish_reason "stop" (end-of-text token or a stop string), "length"
        (max_tokens, or the context is full) or "cancelled". Raises TextError or ContextError at
        once where the prompt is empty or leaves no room for a token. An error that interrupts
        the answer (StorageError) is raised after the text so far, with finish_reason "error".
        """
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(list(prompt))
        prompt = prompt.checked(self.model.n_ctx)
        self.stats, self._cancelled = Stats(prompt_tokens=len(prompt.ids)), False
        decoder = StreamDecoder(self._vocabulary, start_of_text=not prompt.continues)
        limit = self.model.n_ctx + 1 if max_tokens is None else max_tokens
        eos = frozenset[int]() if ignore_eos else self._vocabulary.eos_ids
        tokens = self._tokens(prompt.ids, limit, eos)
        return self._texts(tokens, decoder, StopStrings([*stop, *prompt.stops]))

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
        """Generated ids, one by one; then `stats.finish_reason` is set."""
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
        """Whether the answer ends here; sets `stats.finish_reason` if so."""
        stats = self.stats
        if self._cancelled:
            stats.finish_reason = "cancelled"
        elif len(stats.tokens) >= limit:
            stats.finish_reason = "length"
        elif len(self._cached) >= self.model.n_ctx:
            stats.finish_reason, stats.context_full = "length", True
        return bool(stats.finish_reason)

    def _prefill(self, prompt: list[int]) -> F32 | None:
        """Run the tokens that are not in the cache; logits f32 [vocab], None if cancelled."""
        position = min(common_prefix(self._cached, prompt), len(prompt) - 1)
        self.stats.reused_tokens = position
        del self._cached[position:]
        logits = None
        while position < len(prompt):
            if self._cancelled:
                self.stats.finish_reason = "cancelled"
                return None
            chunk = prompt[position : position + max(PREFILL_CHUNK, self.model.slice.batch)]
            logits = self.model.forward(chunk, position)
            self._cached.extend(chunk)
            position += len(chunk)
        return logits

    def forget(self) -> None:
        """Empty the cache; the next prompt is computed whole."""
        self._cached.clear()

    def close(self) -> None:
        """Free the model's threads and memory. Idempotent."""
        self.model.close()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two sequences share at their beginning."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
