"""A pack to a model that runs on this board: kernels, memory, weights, in the order that fails
cheapest.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from picoedge.engine.options import OpenOptions

if TYPE_CHECKING:
    from picoedge.engine.adapt import Adapter
    from picoedge.engine.fit import MemoryFit
    from picoedge.kernels.api import Kernels
    from picoedge.model.lanes import Reduce
    from picoedge.model.transformer import BroadcastInput, GatherLogits, Transformer
    from picoedge.planner.memory import MemoryPlan
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack
    from picoedge.store.shards import Slice
    from picoedge.store.window.weights import Holding


def check_options(options: OpenOptions) -> None:
    """Refuse what no model could be opened with, before one is fetched. Raises UsageError."""
    from picoedge.kernels.loader import describe_kernels

    describe_kernels(options.kernels)


@dataclass(frozen=True)
class SliceHooks:
    """What a slice is tied to the others with; see `model.transformer`."""

    reduce: Reduce
    broadcast_input: BroadcastInput | None = None
    gather_logits: GatherLogits | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that runs, and the plan its memory follows; None where all of it is mapped."""

    pack: Pack
    model: Transformer
    plan: MemoryPlan | None
    adapter: Adapter | None = None  # knows what the plan has become


def open_model(
    pack: Pack,
    options: OpenOptions,
    part: Slice | None = None,
    progress: Progress | None = None,
    hooks: SliceHooks | None = None,
) -> LoadedModel:
    """A transformer with a cache for the context asked for; what does not fit is streamed.

    `progress` is told of the weights that are read before the first token; `hooks` bind a slice
    to the others of its model.

    Raises UsageError for a context the model was not made for, MemoryBudgetError before
    anything large is allocated.
    """
    from picoedge.engine.adapt import Adapter
    from picoedge.engine.fit import WHOLE_BATCH, fit_model
    from picoedge.host.reclaim import settle
    from picoedge.model.transformer import Transformer
    from picoedge.store.window.weights import Windowed

    with ExitStack() as opened:
        kernels = start_kernels(options)
        opened.callback(kernels.close)
        fit = fit_model(pack, kernels, options, part)
        holding = _hold(fit, options, progress)
        opened.callback(holding.close)
        model = Transformer(
            pack,
            kernels,
            fit.load.n_ctx,
            batch=fit.plan.batch if fit.plan else WHOLE_BATCH,
            kv_bits=options.kv_bits,
            reduce=hooks.reduce if hooks else None,
            broadcast_input=hooks.broadcast_input if hooks else None,
            gather_logits=hooks.gather_logits if hooks else None,
            holding=holding,
        )
        adapter = None
        if fit.plan is not None:
            assert isinstance(holding, Windowed)
            model.after_forward = adapter = Adapter(model, holding, fit.plan)
            settle(path for path in pack.path.iterdir() if path.is_file())
        opened.pop_all()
    return LoadedModel(pack, model, fit.plan, adapter)


def start_kernels(options: OpenOptions) -> Kernels:
    """The kernels asked for, with their threads; to be closed."""
    from picoedge.host.cores import usable_cores
    from picoedge.kernels.loader import load_kernels

    return load_kernels(options.kernels, options.threads or usable_cores())


def _hold(fit: MemoryFit, options: OpenOptions, progress: Progress | None) -> Holding:
    from picoedge.store.window.weights import Mapped, Windowed

    pack, part, plan = fit.pack, fit.load.part, fit.plan
    if plan is None:
        if options.verify:
            pack.verify(partial(progress, f"checking {pack.name}") if progress else None)
        return Mapped(pack, part)
    if options.verify:
        import hashlib  # noqa: F401  (4 MB: before the resident set takes the room)
    total, done = plan.window.resident_bytes, 0

    def tell(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(f"reading {pack.name}", done, total)

    return Windowed(
        pack,
        part,
        plan.window,
        io=plan.reading.io,
        read_ahead=plan.reading.reserve,
        verify=options.verify,
        progress=tell,
    )
