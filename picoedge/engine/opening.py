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

    from picoedge.engine.session import Session
    from picoedge.model.transformer import Transformer
    from picoedge.store.reader import Pack

    Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class OpenOptions:
    """How a model is opened. None everywhere: what this board and the model suggest."""

    threads: int | None = None
    memory_bytes: int | None = None  # ceiling for everything this process takes
    n_ctx: int | None = None
    kernels: str | None = None  # "numpy", "native"
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def check_options(options: OpenOptions) -> None:
    """Refuse what no model could be opened with, before one is fetched. Raises UsageError."""
    from picoedge.kernels.loader import describe_kernels

    describe_kernels(options.kernels)


def open_model(pack: Pack, options: OpenOptions) -> Transformer:
    """A transformer with a cache for the context asked for.

    Raises UsageError for a context the model was not made for, MemoryBudgetError before
    anything large is allocated.
    """
    n_ctx = choose_context(pack, options)
    from picoedge.engine.cores import usable_cores
    from picoedge.kernels.loader import load_kernels
    from picoedge.model.transformer import Transformer

    with ExitStack() as opened:
        kernels = load_kernels(options.kernels, options.threads or usable_cores())
        opened.callback(kernels.close)
        model = Transformer(pack, kernels, n_ctx)
        opened.pop_all()
    return model


def choose_context(pack: Pack, options: OpenOptions) -> int:
    """Positions to make room for, checked against the model and the memory there is."""
    config, exact = pack.config, holds_f32(pack)
    sentencepiece = (pack.path / "tokenizer.model").exists()
    available = memory.available_bytes()
    n_ctx = options.n_ctx
    if n_ctx is None:
        budget = min(available + pack.nbytes, options.memory_bytes or available + pack.nbytes)
        n_ctx = memory.default_context(
            config, pack.nbytes, budget, exact=exact, sentencepiece=sentencepiece
        )
    if n_ctx > config.max_position_embeddings:
        raise UsageError(
            f"a context of {n_ctx} tokens: the model knows {config.max_position_embeddings}",
            f"--ctx-size {config.max_position_embeddings} is its largest",
        )
    need = memory.estimate(config, pack.nbytes, n_ctx, exact=exact, sentencepiece=sentencepiece)
    memory.check_budget(need, options.memory_bytes, available)
    return n_ctx


def holds_f32(pack: Pack) -> bool:
    """Whether the pack is f32 throughout, so that its cache is f32 as well."""
    weights = pack.attention(0, range(1)).values()
    return all(matrix.spec.format.bits == 32 for matrix in weights)


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
        model = open_model(pack, options)
        opened.callback(model.close)
        session = Session(model, tokenizer, template, options.sampling, name=pack.name)
        opened.pop_all()
    return session
