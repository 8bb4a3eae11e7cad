"""From MODEL to a session in two steps, each in the order that fails cheapest.

    opened = open_pack("smollm2-135m", OpenOptions())              # files, tokenizer, context
    prompt = opened.prompter.chat([{"role": "user", "content": "Hello"}])
    session = open_session(opened, load_model, prompt)             # memory, kernels, weights
    print(*session.generate(prompt), sep="")

`load_model` runs the model on this board, `load_over_boards` (cluster.load) over
several. `plan_session` is the second step as a dry run: it plans, and loads nothing.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.config import SamplingOptions
from picoedge.engine.options import OpenOptions
from picoedge.errors import PicoedgeError
from picoedge.files import naming
from picoedge.host import resources
from picoedge.host.reclaim import trim
from picoedge.kernels.loader import describe_kernels, load_kernels
from picoedge.store.pack.reader import Pack
from picoedge.store.window.plan import Rates, page_bytes
from picoedge.store.window.weights import MappedWeights, StreamedWeights, WeightStore
from picoedge.units import MB

if TYPE_CHECKING:
    from picoedge.engine.fit import LoadedModel, MemoryFit, Speeds
    from picoedge.engine.session import LanguageModel, Prompt, Prompter, Session
    from picoedge.kernels.api import Kernels
    from picoedge.model.bound_kernels import Reduce
    from picoedge.model.transformer import BroadcastInput, GatherLogits
    from picoedge.planner.memory import MemoryPlan
    from picoedge.progress import Progress
    from picoedge.store.adapters import AdapterFacts
    from picoedge.store.shards import Slice, Unit
    from picoedge.store.window.set_aside import SetAside
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.base import Tokenizer
    from picoedge.text.tokenizer.stream_decoder import Vocabulary

    LoadModel = Callable[[Pack, OpenOptions, Progress | None], LanguageModel]


class OpenPack:
    """A pack and its text files, open; the model is not loaded yet."""

    def __init__(
        self,
        pack: Pack,
        options: OpenOptions,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        self.pack, self._options = pack, options
        self._tokenizer, self._template = tokenizer, template
        self.adapter: AdapterFacts | None = None  # what the model runs with
        self.is_limited = False  # to what others on this board leave

    def suggest_context(self, n_ctx: int) -> None:
        """Take a context of `n_ctx` tokens, unless the options ask for another."""
        assert "options" not in self.__dict__, "the context has been chosen"
        self._options = dataclasses.replace(self._options, n_ctx=self._options.n_ctx or n_ctx)

    def limit(self, nbytes: int | None) -> None:
        """Take at most `nbytes` of memory; None: as the options say."""
        assert "options" not in self.__dict__, "the context has been chosen"
        if nbytes is not None:
            self._options = dataclasses.replace(self._options, memory_bytes=nbytes)
            self.is_limited = True

    def adapt(self, folder: Path) -> None:
        """Run the model with the LoRA adapter in `folder`.

        Raises ModelError where it is damaged or another model's, UnsupportedError.
        """
        from picoedge.model.adapter import AdapterSlice
        from picoedge.store.adapters import AdapterFacts, read_adapter

        assert "options" not in self.__dict__, "the context has been chosen"
        pack, adapter = self.pack, read_adapter(folder)
        with naming(folder):
            prepared = AdapterSlice.prepare(adapter, pack.config, pack.ffn_shard_cols)
        self._options = dataclasses.replace(self._options, adapter=prepared)
        self.adapter = AdapterFacts.of(folder, adapter)

    @cached_property
    def options(self) -> OpenOptions:
        """The options with the context chosen. Raises UsageError for too large a context."""
        from picoedge.engine.fit import choose_context

        asked, n_ctx = self._options, choose_context(self.pack, self._options)
        chosen = asked.is_default_context or asked.n_ctx is None
        return dataclasses.replace(asked, n_ctx=n_ctx, is_default_context=chosen)

    @property
    def sampling(self) -> SamplingOptions:
        """The options that were chosen, then the model's own, then ours."""
        chosen: Any = {**self.pack.sampling, **self._options.sampling}
        return SamplingOptions(**chosen)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, until `take_tokenizer`."""
        assert self._tokenizer is not None, "opened without its text files, or taken"
        return self._tokenizer

    @property
    def prompter(self) -> Prompter:
        """Makes prompts for this model and context. It keeps the tokenizer in memory."""
        from picoedge.engine.session import Prompter

        n_ctx = self.options.n_ctx
        assert n_ctx is not None
        return Prompter(self.pack.name, self.tokenizer, self._template, n_ctx, pack=self.pack.path)

    def take_tokenizer(self) -> Tokenizer:
        """The tokenizer, to which this object then has no reference."""
        tokenizer, self._tokenizer = self.tokenizer, None
        return tokenizer


def open_pack(
    name: Path | str | None,
    options: OpenOptions,
    progress: Progress | None = None,
    *,
    text: bool = True,
    template: bool = True,
) -> OpenPack:
    """Open MODEL `name` (None: the default model) or the pack at a path; fetch and pack it first
    if need be. Without `text` neither tokenizer nor chat template are read.

    Raises UsageError, ModelError, TextError, DownloadError, StorageError.
    """
    describe_kernels(options.kernels)  # kernels that this board lacks: before a model is fetched
    pack = _find(name, progress)
    pack.check_held(pack.all_shards, embed=True)  # a slice alone answers no prompt
    if not text:
        return OpenPack(pack, options)
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.load import load_tokenizer

    if options.memory_bytes is not None:
        trim()  # starting alone may take more than a small board allows
    chat = ChatTemplate.load(pack.path) if template else None
    opened = OpenPack(pack, options, load_tokenizer(pack.path), chat)
    if chat is not None and chat.chosen:
        from picoedge.text.template.chosen import end_answers

        end_answers(chat, opened.tokenizer)
    if chat is not None:
        with suppress(PicoedgeError):  # so that what Jinja takes is counted in the memory plan
            chat.probe()
    return opened


def _find(name: Path | str | None, progress: Progress | None) -> Pack:
    path = Path(name) if name is not None else Path()
    if isinstance(name, Path) or (path.suffix == ".pico" and path.is_dir()):
        return Pack.open(path)  # without the shelf and its catalogue
    from picoedge.registry.shelf import Shelf

    return Shelf.from_environment().open(name, progress=progress)


def open_session(
    opened: OpenPack,
    load: LoadModel,
    prompt: Prompt | None = None,
    progress: Progress | None = None,
    max_tokens: int | None = None,
) -> Session:
    """Load the model with `load`; the session for it.

    `prompt`: the only one this session will answer, with at most `max_tokens` tokens. Where memory
    is short its context is then no larger than both (on one board), and the tokenizer is dropped
    before the memory is planned, so the caller must not keep it, nor a Prompter.
    Raises MemoryBudgetError before anything large is allocated, StorageError, MeshError.
    """
    from picoedge.engine.session import Session

    pack, options = opened.pack, opened.options
    vocabulary: Vocabulary = opened.take_tokenizer()
    short = options.memory_bytes is not None or pack.nbytes > resources.available_bytes()
    if prompt is not None and short:
        from picoedge.text.tokenizer.piece_table import PieceTable

        if max_tokens is not None and options.cluster is None:
            options = _for_one_answer(options, len(prompt.ids) + max_tokens)
        vocabulary = PieceTable(vocabulary, pack.config.vocab_size)
    if options.memory_bytes is not None:
        trim()
    with ExitStack() as failing:
        model = load(pack, options, progress)
        failing.callback(model.close)
        session = Session(model, vocabulary, opened.sampling, name=pack.name)
        failing.pop_all()
    return session


_CONTEXT_STEP = 64


def _for_one_answer(options: OpenOptions, tokens: int) -> OpenOptions:
    """A context for so many tokens, at most the one chosen."""
    assert options.n_ctx is not None
    needed = -(-(tokens + 1) // _CONTEXT_STEP) * _CONTEXT_STEP
    return dataclasses.replace(options, n_ctx=min(options.n_ctx, needed))


def load_model(
    pack: Pack,
    options: OpenOptions,
    progress: Progress | None = None,
    *,
    part: Slice | None = None,
    reduce: Reduce | None = None,
    broadcast_input: BroadcastInput | None = None,
    gather_logits: GatherLogits | None = None,
    aside: SetAside | None = None,
    on_plan: Callable[[int], None] | None = None,
) -> LoadedModel:
    """Load a model, or the slice `part` of one; what does not fit in memory will be streamed.

    `reduce`, `broadcast_input` and `gather_logits` join a slice to the others: see
    `model.transformer`. Weights set `aside` are taken from there. Before weights are read
    `on_plan` is called with the bytes that this process will take; 0: weights are mapped.
    `progress` reports the weights that are read before the first token. Raises MemoryBudgetError
    before anything large is allocated, UsageError, StorageError.
    """
    from picoedge.engine.fit import WHOLE_BATCH, LoadedModel, WindowTuner, fit_model

    with ExitStack() as failing:
        kernels = start_kernels(options)
        failing.callback(kernels.close)
        fit = fit_model(pack, kernels, options, part, lent_bytes=aside.nbytes if aside else 0)
        if on_plan is not None:
            on_plan(fit.plan.total if fit.plan else 0)
        weights = _hold(fit, options, progress, aside)
        failing.callback(weights.close)
        model = LoadedModel(
            pack,
            kernels,
            fit.load.n_ctx,
            batch=fit.plan.batch if fit.plan else WHOLE_BATCH,
            kv_bits=options.kv_bits,
            reduce=reduce,
            broadcast_input=broadcast_input,
            gather_logits=gather_logits,
            holding=weights,
            adapter=options.adapter.of(fit.load.part) if options.adapter else None,
        )
        if fit.plan is not None:
            assert isinstance(weights, StreamedWeights)
            model.memory_plan, model.tuner = fit.plan, WindowTuner(model, weights, fit.plan)
            model.after_forward = model.tuner
            trim(path for path in pack.path.iterdir() if path.is_file())
        failing.pop_all()
    return model


def start_kernels(options: OpenOptions) -> Kernels:
    """The kernels asked for, with their threads; close them after use."""
    return load_kernels(options.kernels, options.threads or resources.usable_cores())


def _hold(
    fit: MemoryFit, options: OpenOptions, progress: Progress | None, aside: SetAside | None
) -> WeightStore:
    """The weights, mapped or held by the plan, checked against their hashes where asked for."""
    pack, part, plan = fit.pack, fit.load.part, fit.plan
    if plan is None:
        if options.verify:
            pack.verify(partial(progress, f"checking {pack.name}") if progress else None)
        return MappedWeights(pack, part)
    total, done = plan.window.resident_bytes, 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(f"reading {pack.name}", done, total)

    return StreamedWeights(
        pack,
        part,
        plan.window,
        io=plan.reading.io,
        read_ahead=plan.reading.reserve,
        verify=options.verify,
        progress=count,
        aside=aside,
    )


# -- a dry run ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class SessionPlan:
    """The memory plan of a conversation with a model, and the measured speeds behind it."""

    model: str
    plan: MemoryPlan
    apart: int  # bytes mapped beyond the plan's; 0 with streaming
    adapter: int  # bytes of an adapter, which the plan counts with the process itself
    speeds: Speeds
    kernels: str
    threads: int

    @property
    def whole(self) -> bool:
        """Whether all weights are in memory and nothing is streamed."""
        return not self.plan.window.streamed

    @property
    def total(self) -> int:
        """Bytes taken when the context is full."""
        return self.plan.total + self.apart

    def to_json(self) -> dict[str, Any]:
        """The plan's fields, its layers (the head counts as the one after the last), and speeds."""
        storage, window = self.speeds.storage, self.plan.window
        return {
            "model": self.model,
            "whole": self.whole,
            **self.plan.to_json(),
            "apart_mb": self.apart / MB,
            "total_mb": self.total / MB,
            "adapter_mb": self.adapter / MB,
            "resident": _by_layer(window.units, window.resident),
            "streamed": _by_layer(window.units, frozenset(window.streamed)),
            "storage": {
                "device": storage.device,
                "direct_bytes_per_s": storage.direct,
                "mapped_bytes_per_s": storage.mapped,
                "limit_bytes_per_s": storage.limit,
            },
            "kernels": {
                "name": self.kernels,
                "threads": self.threads,
                "weight_bytes_per_s": self.speeds.compute,
            },
        }


def plan_session(opened: OpenPack) -> SessionPlan:
    """Plan as `open_session` would for a conversation, and load nothing.

    Raises MemoryBudgetError, StorageError.
    """
    from picoedge.engine.fit import bytes_apart, fit_model, measure_speeds, resident_plan

    pack, apart = opened.pack, 0
    with closing(start_kernels(opened.options)) as kernels:
        fit = fit_model(pack, kernels, opened.options)
        opened.take_tokenizer()  # until here: a conversation keeps it in memory
        speeds = measure_speeds(pack, kernels, fit.budget.total)
        plan = fit.plan
        if plan is None:
            rates = Rates(speeds.storage.effective_mapped, speeds.compute)
            plan, apart = resident_plan(fit.load, fit.budget, rates), bytes_apart(pack)
        adapter = opened.options.adapter.nbytes if opened.options.adapter else 0
        return SessionPlan(pack.name, plan, apart, adapter, speeds, kernels.name, kernels.threads)


def _by_layer(units: tuple[Unit, ...], chosen: frozenset[Unit]) -> list[dict[str, int]]:
    """Bytes of the chosen units by layer and kind."""
    layers: dict[int, Counter[str]] = {}
    for unit in units:
        counts = layers.setdefault(unit.layer, Counter())
        counts[unit.kind] += page_bytes(unit) if unit in chosen else 0
    return [{"layer": layer, **counts} for layer, counts in layers.items()]
