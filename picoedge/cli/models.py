"""From a command's parameters to a prompt, an open pack, and a model that runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from picoedge.cli import reports
from picoedge.cli.options import chosen_cluster, chosen_sampling, chosen_variables, is_typed
from picoedge.cli.output import error_line, note, showing_progress, warn
from picoedge.errors import ContextError, UsageError
from picoedge.units import format_size

if TYPE_CHECKING:
    from picoedge.engine.open import LoadModel, OpenPack
    from picoedge.engine.options import OpenOptions
    from picoedge.engine.session import LanguageModel, Prompt, Prompter, Session
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

    Model = TypeVar("Model", bound=LanguageModel)

MAX_STDIN_BYTES = 16 << 20  # more than any context takes


def open_named_pack(
    values: Mapping[str, Any],
    *,
    text: bool = True,
    template: bool = True,
    loads: bool = True,
    **changes: Any,
) -> OpenPack:
    """The pack that MODEL names, opened; fetched and packed on first use.

    With the options that every command with a model takes, and `changes`. Where the command `loads`
    the model on this board alone, and memory is short, the board's daemon gives up what it keeps.
    """
    from picoedge.engine import fit
    from picoedge.engine import open as opening
    from picoedge.engine.options import OpenOptions
    from picoedge.store.pages import end_where_pages_are_lost

    options = OpenOptions(
        threads=values["threads"],
        memory_bytes=values["memory"],
        n_ctx=values["ctx_size"],
        window_io=values["window_io"],
        kv_bits=int(values["kv_bits"]),
        verify=values["verify"],
        kernels=values["kernels"],
        cluster=chosen_cluster(values),
        sampling=chosen_sampling(values),
        **changes,
    )
    with showing_progress() as progress:
        opened = opening.open_pack(values["model"], options, progress, text=text, template=template)
    if values.get("adapter"):
        opened.adapt(Path(values["adapter"]))
    lost = f"a file of {opened.pack.path} that is in use can no longer be read"
    hint = "it was cut, or the card is gone or failing: picoedge verify checks it"
    end_where_pages_are_lost(error_line(lost, hint))
    for warning in opened.tokenizer.warnings if text else ():
        warn(warning)
    if loads and options.cluster is None and fit.is_pressed(opened.pack, options, fit.LEFT_FREE):
        from picoedge.jobs.kept_memory import make_room
        from picoedge.mesh.cluster_folder import cluster_folder

        opened.limit(make_room(cluster_folder(os.environ), opened.pack, options))
    return opened


def start_session(
    values: Mapping[str, Any], opened: OpenPack, prompt: Prompt | None = None
) -> Session:
    """The session of a command; `prompt`: the only prompt it will answer."""
    from picoedge.engine import open as opening

    max_tokens = token_limit(values["n_tokens"]) if prompt else None
    with showing_progress() as progress:
        session = opening.open_session(opened, loader(opened), prompt, progress, max_tokens)
    _tell_of(session.model, values, session.describe())
    return session


def loader(opened: OpenPack) -> LoadModel:
    """Loads the model on this board, or with --cluster over several."""
    if opened.options.cluster is not None:
        from picoedge.cluster.load import load_over_boards

        return load_over_boards
    from picoedge.engine.open import load_model

    if not opened.is_limited:
        return load_model
    from picoedge.jobs.kept_memory import tell_memory
    from picoedge.mesh.cluster_folder import cluster_folder

    return partial(load_model, on_plan=partial(tell_memory, cluster_folder(os.environ)))


def load_alone(
    values: Mapping[str, Any],
    opened: OpenPack,
    load_model: Callable[[Pack, OpenOptions, Progress | None], Model],
) -> Model:
    """The model without a conversation."""
    with showing_progress() as progress:
        model = load_model(opened.pack, opened.options, progress)
    _tell_of(model, values)
    return model


def check_length(opened: OpenPack, tokens: int, remedy: str) -> None:
    """Refuse more tokens than the context has, before a model is loaded. Raises ContextError."""
    n_ctx = opened.options.n_ctx or 0
    if tokens > n_ctx:
        raise ContextError(
            f"{tokens} tokens, a context of {n_ctx}", f"take a larger --ctx-size, or {remedy}"
        )


def _tell_of(model: LanguageModel, values: Mapping[str, Any], *lines: str) -> None:
    tell_of_numpy(model.slice.kernels.name, values["kernels"])
    if values.get("verbose"):
        for line in (*lines, reports.plan_line(model.slice.memory_plan)):
            note(line, verbose=True)


def tell_of_numpy(running: str, asked: str | None) -> None:
    """Say why NumPy computes where it was not asked for: it is several times slower."""
    if running != "numpy" or asked is not None:
        return
    from picoedge.kernels.loader import describe_kernels

    warn(f"running on {describe_kernels()}", "picoedge")


def stdin_is_terminal() -> bool:
    """Whether a person types at the other end."""
    return sys.stdin is not None and sys.stdin.isatty()


def _read_stdin() -> str:
    """All of stdin as text. Raises UsageError where it is not UTF-8, or endless."""
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise UsageError(
            f"standard input is larger than {format_size(MAX_STDIN_BYTES)}", "no context is"
        )
    return _decode_text(data, "standard input")


def read_text(path: Path, limit: int) -> str:
    """The first `limit` bytes of a file as text. Raises UsageError where it is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(limit)
    return _decode_text(data, str(path), cut=len(data) == limit)


def _decode_text(data: bytes, where: str, cut: bool = False) -> str:
    """UTF-8 to text; `cut`: the last character may be incomplete, and is then dropped."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3:
            return data[: error.start].decode("utf-8")
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})", "convert it") from None


def chosen_prompt(prompt: str | None) -> str:
    """`-p`, else standard input, less its last newline. Raises UsageError for neither."""
    if prompt is None and stdin_is_terminal():
        raise UsageError("no prompt", "give one with -p TEXT, or pipe it in")
    text = _read_stdin().removesuffix("\n") if prompt is None else prompt
    if not text.strip():
        raise UsageError("the prompt is empty", "give one with -p TEXT, or pipe it in")
    return text


def chosen_prompter(opened: OpenPack, values: Mapping[str, Any]) -> Prompter:
    """Makes prompts by the chat template and with the variables that were asked for."""
    prompter = opened.prompter
    if values["chat_template"]:
        prompter = prompter.with_template(values["chat_template"])
        if prompter.template is not None and prompter.template.chosen:
            note(f"{prompter.name} keeps this chat template: --chat-template own undoes it")
    for name, value in chosen_variables(values):
        prompter = prompter.with_variable(name, value)
    if values["think"] is not None and prompter.template is not None:
        try:
            prompter = prompter.with_thinking(values["think"])
        except UsageError as error:
            if is_typed("think"):  # as a setting it is for the models that have a switch
                warn(error.message)
    return prompter


def chat_prompt(opened: OpenPack, values: Mapping[str, Any], text: str) -> Prompt:
    """The prompt of one question, by the chat template; says what that does with the messages."""
    system = values["system"]
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    prompter = chosen_prompter(opened, values)
    for line in prompter.notes(messages):
        warn(line)
    return prompter.chat(messages)


def token_limit(n_tokens: int) -> int | None:
    """-1 is as many as the context takes."""
    return None if n_tokens < 0 else n_tokens
