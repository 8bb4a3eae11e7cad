"""From a model's name to a session: files, memory, kernels, in the order that fails cheapest."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.engine import memory
from picoedge.errors import UsageError
from picoedge.model.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoedge.engine.planning import MemoryPlan
    from picoedge.engine.session import Session
    from picoedge.model.transformer import Transformer
    from picoedge.store.reader import Pack
    from picoedge.store.slices import Slice

    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened. None everywhere: what this board and the model suggest."""

    threads: int | None = None
    memory_bytes: int | None = None  # ceiling for everything this process takes
    window_io: str = "auto"  # how what does not fit is read: "direct", "mmap"
    kv_bits: int = 16  # of the cache of keys and values: 16 or 8
    verify: bool = False  # compare what is streamed with its hashes
    n_ctx: int | None = None
    kernels: str | None = None  # "numpy", "native"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def check_options(options: OpenOptions) -> None:
    """Refuse what no model could be opened with, before one is fetched. Raises UsageError."""
    from picoedge.kernels.loader import describe_kernels

    describe_kernels(options.kernels)


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that runs, and the plan its memory follows; None where all of it is mapped."""

    pack: Pack
    model: Transformer
    plan: MemoryPlan | None


def open_model(pack: Pack, options: OpenOptions, part: Slice | None = None) -> Opened:
    """A transformer with a cache for the context asked for; what does not fit is streamed.

    Raises UsageError for a context the model was not made for, MemoryBudgetError before
    anything large is allocated.
    """
    n_ctx = choose_context(pack, options)
    from picoedge.engine.cores import usable_cores
    from picoedge.engine.fitting import Shape, fits_whole, fixed_bytes, plan_for, spare_bytes
    from picoedge.kernels.loader import load_kernels
    from picoedge.model.transformer import Transformer
    from picoedge.store.holding import Windowed
    from picoedge.store.slices import Slice

    part = part or Slice(range(pack.n_attention_shards), range(pack.n_ffn_shards))
    shape = Shape(pack, part, n_ctx, cache_bits(pack, options))
    with ExitStack() as opened:
        kernels = load_kernels(options.kernels, options.threads or usable_cores())
        opened.callback(kernels.close)
        if fits_whole(shape, options.memory_bytes or spare_bytes()):
            model = Transformer(pack, kernels, n_ctx, part=part, kv_bits=options.kv_bits)
            opened.pop_all()
            return Opened(pack, model, None)
        plan = plan_for(shape, kernels, options, fixed_bytes())
        holding = Windowed(
            pack,
            part,
            plan.window,
            io=plan.reading.io,
            read_ahead=plan.reading.reserve,
            verify=options.verify,
        )
        opened.callback(holding.close)
        model = Transformer(
            pack, kernels, n_ctx, batch=plan.batch, kv_bits=options.kv_bits, holding=holding
        )
        opened.pop_all()
    return Opened(pack, model, plan)


def choose_context(pack: Pack, options: OpenOptions) -> int:
    """Positions to make room for, checked against the model and the memory there is."""
    config, kv_bits = pack.config, cache_bits(pack, options)
    sentencepiece = (pack.path / "tokenizer.model").exists()
    available = memory.available_bytes()
    n_ctx = options.n_ctx
    if n_ctx is None:
        budget = min(available, options.memory_bytes or available)
        n_ctx = memory.default_context(config, budget, kv_bits=kv_bits)
    if n_ctx > config.max_position_embeddings:
        raise UsageError(
            f"a context of {n_ctx} tokens: the model knows {config.max_position_embeddings}",
            f"--ctx-size {config.max_position_embeddings} is its largest",
        )
    need = memory.estimate(
        config, pack.nbytes, n_ctx, kv_bits=kv_bits, sentencepiece=sentencepiece
    )
    memory.check_private(need, available)
    return n_ctx


def cache_bits(pack: Pack, options: OpenOptions) -> int:
    """Bits of the cache of keys and values: 32 where the weights are f32, else as asked."""
    weights = pack.attention(0, range(1)).values()
    exact = all(matrix.spec.format.bits == 32 for matrix in weights)
    return 32 if exact else options.kv_bits


def resolve(name: str | None, progress: Progress | None = None) -> Path:
    """The pack folder that MODEL names; fetched and packed if need be."""
    if name is not None and name.rstrip("/").endswith(".pico") and Path(name).is_dir():
        return Path(name)  # nothing to look up: the shelf and its catalogue stay unread
    from picoedge.engine.shelf import resolve_model

    return resolve_model(name, progress=progress)


def open_session(
    name: Path | str | None, options: OpenOptions, *, with_template: bool = True
) -> Session:
    """A conversation with MODEL `name`, or with the pack at a path (None: the default model)."""
    check_options(options)
    path = name if isinstance(name, Path) else resolve(name)
    from picoedge.engine.session import Session
    from picoedge.store.reader import Pack
    from picoedge.text.template import ChatTemplate
    from picoedge.text.tokenizer import load_tokenizer

    pack = Pack.open(path)
    tokenizer = load_tokenizer(path)
    template = ChatTemplate.load(path) if with_template else None
    with ExitStack() as opened:
        how = open_model(pack, options)
        opened.callback(how.model.close)
        session = Session(how.model, tokenizer, template, options.sampling, name=pack.name)
        session.plan = how.plan
        opened.pop_all()
    return session
