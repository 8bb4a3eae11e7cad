"""Kept chats from the side of `picoedge chat`: which one goes on, and with which settings."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import ChatAdapter
from picoedge.cli.chat_log import ChatLog
from picoedge.cli.chat_turns import VARIABLE
from picoedge.cli.options import chosen_variables, is_typed
from picoedge.cli.output import warn
from picoedge.errors import ModelError, PicoedgeError, UsageError

if TYPE_CHECKING:
    from picoedge.cli.chat_turns import Chat
    from picoedge.engine.open import OpenPack

_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop",
)  # fmt: skip
_LIST = "picoedge chats lists them"


def choose_model(values: dict[str, Any]) -> dict[str, Any]:
    """The values of `chat` with MODEL, and in `continued` the number of the chat that goes on.

    Without ID: the chat used last where MODEL is not named, otherwise the last one of MODEL, which
    is found once its pack is open (0). Raises UsageError, StorageError.
    """
    word, model = values["continued"], values["model"]
    if word is None:
        return values
    if not values["history"]:
        raise UsageError(
            "--continue needs the history that --no-history turns off", "leave one out"
        )
    folder = ChatFolder.from_environment()
    if word and not word.isdecimal():  # --continue MODEL
        if model is not None and is_typed("model"):
            raise UsageError(f"--continue: {word!r} is no chat", _LIST)
        word, model = "", word
    number = int(word[:9]) if word else 0 if model else folder.last(None)
    if number is None or not folder.numbers():
        raise UsageError("no chat is kept on this board", "begin one without --continue")
    if number and model is None:
        model = folder.read(number).source or None
    return {**values, "model": model, "continued": number}


def open_log(values: dict[str, Any], opened: OpenPack) -> ChatLog:
    """The log of a new chat, or of the chat that this process continues.

    That chat's adapter is then the model's, unless --adapter or another MODEL was given. Nothing is
    written. Raises UsageError, StorageError; ModelError where its adapter is not as it was.
    """
    model = opened.pack.name
    if not values["history"]:
        log = ChatLog()
        log.begin(model, _source(values["model"]), _adapter_of(opened))
        return log
    folder, number = ChatFolder.from_environment(), values["continued"]
    log = ChatLog(folder, warn)
    if number is None:
        log.begin(model, _source(values["model"]), _adapter_of(opened))
        return log
    number = number or folder.last(model)
    if number is None:
        raise UsageError(f"no chat with {model} is kept", f"--continue ID of another: {_LIST}")
    log.resume(number)
    try:
        if _is_same_model(log, model) and values["adapter"] is None:
            _adapt(opened, log.conversation.adapter, number)
    except BaseException:
        log.close()
        raise
    return log


def _adapt(opened: OpenPack, kept: ChatAdapter | None, number: int) -> None:
    """Run the model with the adapter that chat `number` was held with."""
    if kept is None:
        return
    again = f"picoedge chat --continue {number} --adapter"
    try:
        opened.adapt(Path(kept.path))
    except PicoedgeError as error:
        raise type(error)(
            f"chat {number} was held with an adapter: {error.message}",
            f"put it back, or go on without it: {again} none",
        ) from error
    assert opened.adapter is not None
    if opened.adapter.identity != kept.identity:
        raise ModelError(
            f"{kept.path} is no longer the adapter that chat {number} was held with",
            f"to go on with what it is now: {again} {shlex.quote(kept.path)}; "
            f"without it: {again} none",
        )


def _is_same_model(log: ChatLog, model: str) -> bool:
    return log.conversation.model in (model, "")


def _adapter_of(opened: OpenPack) -> ChatAdapter | None:
    facts = opened.adapter
    return None if facts is None else ChatAdapter(str(facts.path), facts.identity)


def record_model(log: ChatLog, values: dict[str, Any], opened: OpenPack) -> None:
    """Say and record what a chat goes on with, where that is another model or adapter."""
    before, model, number = log.conversation, opened.pack.name, log.number
    if number is None:
        return
    if not _is_same_model(log, model):
        warn(f"chat {number} was with {before.model}: {model} goes on with it")
        log.add("chat", model=model, source=_source(values["model"]))
    now = _adapter_of(opened)
    if now == before.adapter:
        return
    was = f"with the adapter {before.adapter.path}" if before.adapter else "without an adapter"
    warn(f"chat {number} was {was}: it goes on {f'with {now.path}' if now else 'without'}")
    log.add("adapter", **(now.to_json() if now else {"path": ""}))


def _source(model: str | None) -> str:
    """MODEL, as it can be named from any folder."""
    return str(Path(model).absolute()) if model and os.path.exists(model) else model or ""


def restore_settings(chat: Chat, values: dict[str, Any]) -> None:
    """Settings as the chat had them, except those on the command line, which it has from now on."""
    typed = [name for name in _SAMPLING if is_typed(name)]
    kept = {k: v for k, v in chat.log.conversation.settings.items() if k not in typed}
    kept.pop("n" if is_typed("n_tokens") else "", None)
    kept.pop("think" if is_typed("think") else "", None)
    for name, _ in chosen_variables(values):
        kept.pop(VARIABLE + name, None)
    for name, value in kept.items():
        try:
            chat.apply(name, value)
        except PicoedgeError as error:
            warn(f"{name} stays as it is: {error.message}")
    for name in typed:
        chat.log.add("set", name=name, value=_plain(values[name]))
    if is_typed("n_tokens"):
        chat.log.add("set", name="n", value=values["n_tokens"])
    if is_typed("think"):
        chat.log.add("set", name="think", value="on" if values["think"] else "off")
    for name, value in chosen_variables(values):
        chat.log.add("set", name=VARIABLE + name, value=value)
    if values["system"] is not None and (is_typed("system") or "system" not in kept):
        chat.log.add("set", name="system", value=values["system"])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
