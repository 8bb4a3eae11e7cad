"""From a model's name to a session: files, memory, kernels, in the order that fails cheapest."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.engine.open_options import OpenOptions
from picoedge.errors import PicoedgeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoedge.engine.adapting import Adapter
    from picoedge.engine.fitting import Fit
    from picoedge.engine.joint import Joint
    from picoedge.engine.planning import MemoryPlan
    from picoedge.engine.prompting import Prompt, Prompter
    from picoedge.engine.session import Session
    from picoedge.kernels.api import Kernels
    from picoedge.model.transformer import Announce, Reduce, Transformer
    from picoedge.store.holding import Holding
    from picoedge.store.reader import Pack
    from picoedge.store.slices import Slice
    from picoedge.text.template import ChatTemplate
    from picoedge.text.tokenizer import Tokenizer, Vocabulary

    Progress = Callable[[str, int, int], None]


def check_options(options: OpenOptions) -> None:
    """Refuse what no model could be opened with, before one is fetched. Raises UsageError."""
    from picoedge.kernels.loader import describe_kernels

    describe_kernels(options.kernels)


@dataclass(frozen=True)
class Ties:
    """What a slice is tied to the others with; see `model.transformer`."""

    reduce: Reduce
    announce: Announce | None = None


@dataclass(frozen=True, eq=False)
class Opened:
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
    ties: Ties | None = None,
) -> Opened:
    """A transformer with a cache for the context asked for; what does not fit is streamed.

    `progress` is told of the weights that are read before the first token; `ties` bind a slice
    to the others of its model.

    Raises UsageError for a context the model was not made for, MemoryBudgetError before
    anything large is allocated.
    """
    from picoedge.engine.adapting import Adapter
    from picoedge.engine.fitting import WHOLE_BATCH, fit_model
    from picoedge.engine.libraries import settle
    from picoedge.model.transformer import Transformer
    from picoedge.store.holding import Windowed

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
            reduce=ties.reduce if ties else None,
            announce=ties.announce if ties else None,
            holding=holding,
        )
        adapter = None
        if fit.plan is not None:
            assert isinstance(holding, Windowed)
            model.after_forward = adapter = Adapter(model, holding, fit.plan)
            settle(path for path in pack.path.iterdir() if path.is_file())
        opened.pop_all()
    return Opened(pack, model, fit.plan, adapter)


def start_kernels(options: OpenOptions) -> Kernels:
    """The kernels asked for, with their threads; to be closed."""
    from picoedge.engine.cores import usable_cores
    from picoedge.kernels.loader import load_kernels

    return load_kernels(options.kernels, options.threads or usable_cores())


def _hold(fit: Fit, options: OpenOptions, progress: Progress | None) -> Holding:
    from picoedge.store.holding import Mapped, Windowed

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


def resolve(name: str | None, progress: Progress | None = None) -> Path:
    """The pack folder that MODEL names; fetched and packed if need be."""
    if name is not None and name.rstrip("/").endswith(".pico") and Path(name).is_dir():
        return Path(name)  # nothing to look up: the shelf and its catalogue stay unread
    from picoedge.engine.shelf import resolve_model

    return resolve_model(name, progress=progress)


def open_chat(
    name: Path | str | None, options: OpenOptions, progress: Progress | None = None
) -> tuple[Session, Prompter]:
    """A conversation with MODEL `name`, or with the pack at a path (None: the default model)."""
    pack, prompter, options = _read_first(name, options, with_template=True)
    return _start(pack, prompter.tokenizer, options, progress), prompter


def open_answer(
    name: Path | str | None,
    options: OpenOptions,
    ask: Callable[[Prompter], Prompt],
    *,
    with_template: bool = True,
    progress: Progress | None = None,
) -> tuple[Session, Prompt]:
    """A session for the one prompt that `ask` makes, and the prompt; a name as for `open_chat`.

    Where memory is short the tokenizer is let go of before the model's memory is planned.
    """
    from picoedge.engine.memory import available_bytes
    from picoedge.engine.prompting import check_prompt
    from picoedge.text.pieces import PieceTable

    pack, prompter, options = _read_first(name, options, with_template=with_template)
    prompt = ask(prompter)
    check_prompt(prompt.ids, prompter.n_ctx)
    vocabulary: Vocabulary = prompter.tokenizer
    if options.memory_bytes is not None or pack.nbytes > available_bytes():
        vocabulary = PieceTable(vocabulary, pack.config.vocab_size)
    del prompter
    return _start(pack, vocabulary, options, progress), prompt


def _read_first(
    name: Path | str | None, options: OpenOptions, *, with_template: bool
) -> tuple[Pack, Prompter, OpenOptions]:
    """What comes before the model, and the options with the context that was chosen."""
    check_options(options)
    path = name if isinstance(name, Path) else resolve(name)
    from picoedge.engine.fitting import cache_bits, choose_context
    from picoedge.engine.libraries import settle
    from picoedge.engine.prompting import Prompter

    if options.memory_bytes is not None:
        settle()  # starting alone may take more than a small board allows
    pack, tokenizer, template = read_pack(path, with_template=with_template)
    if template is not None:
        _rehearse(template)
    n_ctx = choose_context(pack, options, cache_bits(pack, options))
    chosen = dataclasses.replace(options, n_ctx=n_ctx)
    return pack, Prompter(pack.name, tokenizer, template, n_ctx), chosen


def _start(
    pack: Pack, vocabulary: Vocabulary, options: OpenOptions, progress: Progress | None
) -> Session:
    from picoedge.engine.libraries import settle
    from picoedge.engine.session import Session

    if options.memory_bytes is not None:
        settle()
    with ExitStack() as opened:
        how = open_anywhere(pack, options, progress)
        opened.callback(how.model.close)
        session = Session(how.model, vocabulary, options.sampling, name=pack.name)
        session.plan, session.adapter = how.plan, how.adapter
        opened.pop_all()
    return session


def open_anywhere(
    pack: Pack, options: OpenOptions, progress: Progress | None = None
) -> Opened | Joint:
    """The model on this board, or with `options.cluster` over the boards of the mesh."""
    if options.cluster is None:
        return open_model(pack, options, progress=progress)
    from picoedge.engine.joint import open_joint

    return open_joint(pack, options, progress)


def _rehearse(template: ChatTemplate) -> None:
    """Render something: what a template engine takes is then there to be counted."""
    with suppress(PicoedgeError):
        template.render([{"role": "user", "content": "?"}])


def read_pack(
    path: Path, *, with_template: bool = True
) -> tuple[Pack, Tokenizer, ChatTemplate | None]:
    """What a conversation needs beside a model that runs. Raises ModelError, TextError."""
    from picoedge.store.reader import Pack
    from picoedge.text.template import ChatTemplate
    from picoedge.text.tokenizer import load_tokenizer

    template = ChatTemplate.load(path) if with_template else None
    return Pack.open(path), load_tokenizer(path), template
