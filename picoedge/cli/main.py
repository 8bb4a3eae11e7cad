"""The click group, and the one place where errors are caught.

COMMANDS says of each command in which module of this folder it is, and as which attribute (a
click.Command). `picoedge --help` reads only this table, so it imports no command.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from picoedge.cli import failures, output, signals
from picoedge.cli.options import Group, config_defaults

COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("chat.chat", "Talk with a model."),
    "chats": ("chats.chats", "List, show and remove the conversations kept on this board."),
    "generate": ("chat.generate", "Complete one prompt."),
    "plan": ("plan.plan", "Show what would stay in memory and what be streamed."),
    "bench": ("benchmark.bench", "Measure prompt and generation speed."),
    "perplexity": ("benchmark.perplexity", "Measure how well a model predicts a text."),
    "pack": ("shelf.pack_command", "Turn a GGUF file or Hugging Face folder into a pack."),
    "finetune": ("finetune.finetune", "Teach a model from your own examples, as an adapter."),
    "train": ("train.train", "Train a small model on your own text."),
    "merge": ("merge.merge", "Add an adapter to a model's weights, as a new pack."),
    "pull": ("shelf.pull_model", "Fetch a model of the catalogue and pack it."),
    "export": ("export.export_model", "Write a model for transformers or llama.cpp."),
    "list": ("shelf.list_models", "List the models on this board (also: ls)."),
    "show": ("shelf.show_model", "Show what a model is."),
    "rm": ("shelf.remove_model", "Remove a packed model."),
    "verify": ("shelf.verify_pack", "Check every byte of a pack against its hashes."),
    "run": ("run.run", "Serve the mesh with this board."),
    "keys": ("keys.keys", "Make a cluster; decide which boards are in it."),
    "ps": ("boards.ps", "Show the boards of the mesh, and what each does."),
    "top": ("boards.top", "Watch the boards of the mesh work."),
    "doctor": ("boards.doctor", "Check this board: faults, with their remedies."),
}
ALIASES = {"ls": "list"}
PROGRAM = "picoedge"
COMPLETION_VARIABLE = "_PICOEDGE_COMPLETE"  # `eval "$(_PICOEDGE_COMPLETE=bash_source picoedge)"`


class LazyGroup(Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the table, in its order: what a newcomer needs first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name or alias, or None."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[name][0].partition(".")
        command = getattr(importlib.import_module(f"picoedge.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return _with_debug(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but the error for an unknown name has a suggestion."""
        if args and args[0] not in COMMANDS and args[0] not in ALIASES and args[0][:1] != "-":
            raise failures.unknown_command(args, [*COMMANDS, *ALIASES])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table, without importing commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(dict)["debug"] = True


def _eager_flag(name: str, **attrs: Any) -> click.Option:
    return click.Option([name], is_flag=True, expose_value=False, is_eager=True, **attrs)


def _debug_option() -> click.Option:
    text = "Show the traceback of an error."
    return _eager_flag("--debug", envvar="PICOEDGE_DEBUG", callback=_set_debug, help=text)


def _with_debug(command: click.Command) -> click.Command:
    """Add --debug to a command: people append it to the line that failed."""
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _with_debug(below)
    if all(param.name != "debug" for param in command.params):
        command.params.append(_debug_option())
    return command


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from picoedge import __version__

        click.echo(f"picoedge {__version__}")
        ctx.exit()


def build_group() -> click.Group:
    """The `picoedge` command."""
    text = "Show the version and exit."
    version = _eager_flag("--version", callback=_show_version, help=text)
    return LazyGroup(
        name=PROGRAM,
        params=[version, _debug_option()],
        callback=_load_config,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help="Small boards on one LAN, run as one machine for language models.",
        epilog="Start with: picoedge chat",
    )


@click.pass_context
def _load_config(ctx: click.Context) -> None:
    ctx.default_map = dict.fromkeys([*COMMANDS, *ALIASES], config_defaults())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's; returns the exit code.

    Never raises; no traceback without --debug.
    """
    state = {"debug": False}  # of this command line: click's `ctx.obj`
    own = argv is None
    try:
        if own:
            signals.raise_on_signals()
            output.open_closed_streams()
        output.tolerate_any_text()
        code = _run(list(sys.argv[1:] if argv is None else argv), state)
        if sys.stdout is not None:
            sys.stdout.flush()  # while an error can still be reported
        if own:
            signals.restore_defaults()
    except BaseException as error:  # nothing above this would catch it
        if own:
            signals.restore_defaults()
        return failures.report(error, debug=state["debug"])
    return code


def _run(args: list[str], state: dict[str, bool]) -> int:
    """Run as click's `main` does, without its reports of errors and its exits."""
    group = build_group()
    instruction = os.environ.get(COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(group, {}, PROGRAM, COMPLETION_VARIABLE, instruction)
    try:
        with group.make_context(PROGRAM, args, obj=state) as ctx:
            result: Any = group.invoke(ctx)
    except click.exceptions.Exit as left:
        return left.exit_code
    return result if isinstance(result, int) else 0
