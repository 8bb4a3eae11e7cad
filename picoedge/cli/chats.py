"""`picoedge chats`: the conversations kept on this board."""

from __future__ import annotations

import time

import click

from picoedge.chats.chat_folder import ChatFolder
from picoedge.chats.conversation import Conversation
from picoedge.cli import output
from picoedge.cli.chat_console import PROMPT
from picoedge.cli.models import stdin_is_terminal
from picoedge.cli.options import json_option
from picoedge.errors import UsageError
from picoedge.sanitize import one_line

_ID = click.IntRange(1, 10**9 - 1)


@click.group("chats", invoke_without_command=True)
@json_option
@click.pass_context
def chats(ctx: click.Context, as_json: bool) -> None:
    """List the conversations kept on this board, the one used last at the end.

    `picoedge chat --continue ID` goes on with one. They are files of JSON lines in
    $XDG_STATE_HOME/picoedge/chats, which only their owner may read.
    """
    if ctx.invoked_subcommand is not None:
        return
    chats = ChatFolder.from_environment().summaries()
    if as_json:
        output.print_json([chat.to_json() for chat in chats])
        return
    adapted = any(chat.adapter for chat in chats)
    rows = [
        (
            str(chat.number),
            when(chat.used_at),
            chat.model,
            *((chat.adapter.name if chat.adapter else "",) if adapted else ()),
            chat.first_words or "…",
        )
        for chat in chats
    ]
    if rows:
        header = ("ID", "WHEN", "MODEL", *(("ADAPTER",) if adapted else ()), "")
        output.print_table(header, rows)
    else:
        output.note("no chat is kept on this board")


@chats.command("show")
@click.argument("number", metavar="ID", type=_ID)
@json_option
def show_chat(number: int, as_json: bool) -> None:
    """Print a conversation; with --json as `/load` of another chat takes it."""
    conversation = ChatFolder.from_environment().read(number)
    if as_json:
        output.print_json(
            {
                "id": number,
                "model": conversation.model,
                "adapter": conversation.adapter and conversation.adapter.to_json(),
                "system": conversation.system,
                "messages": list(conversation.messages),
                "unanswered": conversation.unanswered,
            }
        )
        return
    output.write_answer(_text(conversation))


def _text(conversation: Conversation) -> str:
    """A conversation as it stood on the screen."""
    adapter = conversation.adapter
    lines = [] if adapter is None else [f"[adapter] {one_line(adapter.path)}"]
    lines += [f"[system] {conversation.system}"] * bool(conversation.system)
    for message in [*conversation.messages, *conversation.prompt[len(conversation.settled) :]]:
        lines.append((PROMPT if message["role"] == "user" else "") + message["content"])
    return "".join(line + "\n" for line in lines)


def when(seconds: float) -> str:
    """A time of the board's clock, as `2026-11-30 18:35`."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "?"


@chats.command("rm")
@click.argument("numbers", metavar="[ID]...", nargs=-1, type=_ID)
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def remove_chats(numbers: tuple[int, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Remove conversations for good."""
    folder = ChatFolder.from_environment()
    if bool(numbers) == everything:
        raise UsageError("which chats?", "picoedge chats rm ID..., or --all")
    chosen = folder.numbers() if everything else list(dict.fromkeys(numbers))
    asked = everything and chosen and not yes and stdin_is_terminal()
    if asked and not click.confirm(f"Remove {len(chosen)} chats?", err=True):
        return
    for number in chosen:
        folder.remove(number)
        if not as_json:
            click.echo(f"removed chat {number}")
    if as_json:
        output.print_json({"removed": chosen})
