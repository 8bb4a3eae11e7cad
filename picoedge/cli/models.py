"""From a command's parameters to an opened model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.cli import reports
from picoedge.cli.options import chosen_cluster
from picoedge.cli.output import error_line, note, showing_progress, warn
from picoedge.model.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from picoedge.cluster.open import Joint
    from picoedge.engine.loader import LoadedModel
    from picoedge.engine.options import OpenOptions
    from picoedge.engine.prompt import Prompt, Prompter
    from picoedge.engine.session import Session


def open_options(values: Mapping[str, Any]) -> OpenOptions:
    """How to open a model, from the options that every command with a model takes.

    Raises UsageError for kernels that are not here: rather now than after a download.
    """
    from picoedge.engine.loader import check_options
    from picoedge.engine.options import OpenOptions

    options = OpenOptions(
        threads=values["threads"],
        memory_bytes=values["memory"],
        n_ctx=values["ctx_size"],
        window_io=values["window_io"],
        kv_bits=int(values["kv_bits"]),
        verify=values["verify"],
        kernels=values["kernels"],
        cluster=chosen_cluster(values),
    )
    check_options(options)
    return options


def open_chat(values: Mapping[str, Any], sampling: SamplingOptions) -> tuple[Session, Prompter]:
    """The conversation a command asks for; a first fetch or packing shows its progress."""
    from picoedge.engine import open as opening

    options = dataclasses.replace(open_options(values), sampling=sampling)
    path = find_pack(values["model"])
    with showing_progress() as progress:
        session, prompter = opening.open_chat(path, options, progress)
    _tell_of(session, options, values)
    return session, prompter


def open_answer(
    values: Mapping[str, Any],
    sampling: SamplingOptions,
    ask: Callable[[Prompter], Prompt],
    *,
    with_template: bool = True,
) -> tuple[Session, Prompt]:
    """The session for a command's one prompt, which `ask` makes, and the prompt."""
    from picoedge.engine import open as opening

    options = dataclasses.replace(open_options(values), sampling=sampling)
    path = find_pack(values["model"])
    with showing_progress() as progress:
        session, prompt = opening.open_answer(
            path, options, ask, with_template=with_template, progress=progress
        )
    _tell_of(session, options, values)
    return session, prompt


def _tell_of(session: Session, options: OpenOptions, values: Mapping[str, Any]) -> None:
    tell_of_numpy(session.model.kernels.name, options.kernels)
    if values["verbose"]:
        note(session.describe(), verbose=True)
        note(reports.plan_line(session.plan), verbose=True)


def open_model(values: Mapping[str, Any], n_ctx: int, *, logit_rows: int = 1) -> LoadedModel:
    """A model of this board's, without a conversation.

    Its context is `n_ctx` unless --ctx-size says otherwise. `logit_rows`: of how many tokens the
    logits will be wanted at once.
    """
    from picoedge.engine.loader import LoadedModel

    opened = open_anywhere({**values, "cluster": False}, n_ctx, logit_rows=logit_rows)
    assert isinstance(opened, LoadedModel)
    return opened


def open_anywhere(
    values: Mapping[str, Any], n_ctx: int, *, logit_rows: int = 1
) -> LoadedModel | Joint:
    """As `open_model`; with --cluster over the boards of the mesh."""
    from picoedge.engine import open as opening
    from picoedge.store.pack.reader import Pack

    options = open_options(values)
    pack = Pack.open(find_pack(values["model"]))
    wanted = dataclasses.replace(options, n_ctx=options.n_ctx or n_ctx, logit_rows=logit_rows)
    with showing_progress() as progress:
        opened = opening.open_anywhere(pack, wanted, progress)
    tell_of_numpy(opened.model.kernels.name, options.kernels)
    if values.get("verbose"):
        note(reports.plan_line(opened.plan), verbose=True)
    return opened


def tell_of_numpy(running: str, asked: str | None) -> None:
    """Say why NumPy computes where nobody asked for it: it is several times slower."""
    if running != "numpy" or asked is not None:
        return
    from picoedge.kernels.loader import describe_kernels

    reason = describe_kernels().partition(": ")[2]
    warn(f"running on NumPy: {reason}", "picoedge")


def find_pack(model: str | None) -> Path:
    """The pack that MODEL names, fetched and packed on first use."""
    from picoedge.engine.open import resolve

    with showing_progress() as progress:
        path = resolve(model, progress)
    tell_of_lost_pages(path)
    return path


def tell_of_lost_pages(pack: Path) -> None:
    """Should a mapped file be cut, or its card pulled out, that is one line and exit code 1."""
    from picoedge.store.pages import end_where_pages_are_lost

    lost = f"a file of {pack} that is in use can no longer be read"
    hint = "it was cut, or the card is gone or failing: picoedge verify checks it"
    end_where_pages_are_lost(error_line(lost, hint))


def opening_messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    """A conversation of one question."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def token_limit(n_tokens: int) -> int | None:
    """-1 is as many as the context takes."""
    return None if n_tokens < 0 else n_tokens
