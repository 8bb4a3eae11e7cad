"""Any error as one line on stderr, `error: what, where (what to do)`, and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import click

from picoedge.cli.output import error_line
from picoedge.errors import PicoedgeError, StorageError, UsageError
from picoedge.suggest import did_you_mean

EXIT_RUNTIME = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_LESS_MEMORY = "a smaller --ctx-size or model needs less"

Outcome = tuple[str, str, int]  # message, hint, exit code


def unknown_command(args: Sequence[str], known: Sequence[str]) -> UsageError:
    """The error for an unknown first word, with the command line that was probably meant."""
    word, rest = args[0], args[1:]
    message = f"no such command: {word}"
    if word == "run" and rest:
        return UsageError(message, f"did you mean: picoedge chat {' '.join(rest)}")
    if word.endswith((".gguf", ".pico")) or os.path.sep in word:
        return UsageError(message, f"did you mean: picoedge chat {word}")
    hint = did_you_mean(word, known, "picoedge {}")
    return UsageError(message, hint or "picoedge --help lists the commands")


def report(error: BaseException, debug: bool = False) -> int:
    """Print `error` on stderr; returns the exit code."""
    if debug:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        _abandon_stdout()
        return EXIT_RUNTIME  # the reader of the pipe has ended
    if isinstance(error, KeyboardInterrupt) and sys.stderr is not None and sys.stderr.isatty():
        _print_error("")  # the terminal has shown ^C
    message, hint, code = _outcome(error)
    if message:
        _print_error(error_line(message, hint))
    if isinstance(error, OSError):
        _abandon_stdout()
    return code


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, PicoedgeError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, click.ClickException):
        return _of_click(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "", "", EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return "", "", error.code if isinstance(error.code, int) else EXIT_RUNTIME
    if isinstance(error, MemoryError):
        return "out of memory", _LESS_MEMORY, EXIT_RUNTIME
    if isinstance(error, OSError):
        failure = storage_error(error)
        return failure.message, failure.hint, failure.exit_code
    name = type(error).__name__
    hint = "this is a defect of picoedge: please report it with what --debug shows"
    return f"{name}: {error}".splitlines()[0], hint, EXIT_RUNTIME


def storage_error(error: OSError) -> StorageError:
    """The StorageError for an OSError: what failed, where, what to do."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    where = f": {error.filename}" if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space on that disk",
        errno.EACCES: "check its owner and permissions",
        errno.EROFS: "that disk is mounted read-only",
        errno.ENOMEM: _LESS_MEMORY,
    }
    return StorageError(f"{reason}{where}", hints.get(error.errno or 0, ""))


def _of_click(error: click.ClickException) -> Outcome:
    ctx = getattr(error, "ctx", None)
    asked = ctx.command_path if ctx is not None else "picoedge"
    if isinstance(error, click.NoSuchOption):
        params = ctx.command.params if ctx is not None else []
        names = [name for param in params for name in param.opts if name[:2] == "--"]
        hint = did_you_mean(error.option_name, names) or f"{asked} --help lists the options"
        return f"no such option: {error.option_name}", hint, EXIT_USAGE
    if isinstance(error, click.BadParameter) and error.param is not None and ctx is not None:
        from picoedge.cli.options import source_of

        source = source_of(ctx, error.param)
        missing = isinstance(error, click.MissingParameter)
        message = f"missing {source}" if missing else f"{source}: {error.message}".rstrip(".")
    else:
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
    return message, f"{asked} --help shows how", error.exit_code


def _print_error(line: str) -> None:
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return  # stderr is gone as well


def _abandon_stdout() -> None:
    """Where stdout is gone, keep the interpreter's flush at exit from failing once more."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
