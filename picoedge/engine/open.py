"""From a model's name to a session: files, memory, kernels, in the order that fails cheapest."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from picoedge.engine.loader import LoadedModel, check_options, open_model
from picoedge.engine.options import OpenOptions
from picoedge.errors import PicoedgeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from picoedge.cluster.open import Joint
    from picoedge.engine.prompt import Prompt, Prompter
    from picoedge.engine.session import Session
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.base import Tokenizer, Vocabulary


def resolve(name: str | None, progress: Progress | None = None) -> Path:
    """The pack folder that MODEL names; fetched and packed if need be."""
    if name is not None and name.rstrip("/").endswith(".pico") and Path(name).is_dir():
        return Path(name)  # nothing to look up: the shelf and its catalogue stay unread
    from picoedge.registry.shelf import resolve_model

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
    from picoedge.engine.prompt import check_prompt
    from picoedge.host.memory import available_bytes
    from picoedge.text.tokenizer.piece_table import PieceTable

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
    from picoedge.engine.fit import cache_bits, choose_context
    from picoedge.engine.prompt import Prompter
    from picoedge.host.reclaim import settle

    if options.memory_bytes is not None:
        settle()  # starting alone may take more than a small board allows
    pack, tokenizer, template = read_pack(path, with_template=with_template)
    if template is not None:
        _warm_up(template)
    n_ctx = choose_context(pack, options, cache_bits(pack, options))
    chosen = dataclasses.replace(options, n_ctx=n_ctx)
    return pack, Prompter(pack.name, tokenizer, template, n_ctx), chosen


def _start(
    pack: Pack, vocabulary: Vocabulary, options: OpenOptions, progress: Progress | None
) -> Session:
    from picoedge.engine.session import Session
    from picoedge.host.reclaim import settle

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
) -> LoadedModel | Joint:
    """The model on this board, or with `options.cluster` over the boards of the mesh."""
    if options.cluster is None:
        return open_model(pack, options, progress=progress)
    from picoedge.cluster.open import open_joint

    return open_joint(pack, options, progress)


def _warm_up(template: ChatTemplate) -> None:
    """Render something: what a template engine takes is then there to be counted."""
    with suppress(PicoedgeError):
        template.render([{"role": "user", "content": "?"}])


def read_pack(
    path: Path, *, with_template: bool = True
) -> tuple[Pack, Tokenizer, ChatTemplate | None]:
    """What a conversation needs beside a model that runs. Raises ModelError, TextError."""
    from picoedge.store.pack.reader import Pack
    from picoedge.text.template.template import ChatTemplate
    from picoedge.text.tokenizer.load import load_tokenizer

    pack = Pack.open(path)
    pack.check_held(pack.all_shards, embed=True)  # a slice alone answers nobody
    template = ChatTemplate.load(path) if with_template else None
    return pack, load_tokenizer(path), template
