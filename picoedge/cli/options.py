"""Settings: flag, then PICOEDGE_* variable, then config file, then default.

click does the precedence; this file defines each setting once, reads the config file
(`$XDG_CONFIG_HOME/picoedge/config.toml`, one `name = value` a line), and names the source of a
wrong value.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from picoedge.config import SamplingOptions
from picoedge.engine.options import TRANSPORT_CHOICES
from picoedge.errors import UsageError
from picoedge.files import parse_toml, xdg_folder
from picoedge.suggest import did_you_mean
from picoedge.units import parse_size, parse_span

if TYPE_CHECKING:
    from picoedge.planner.cluster_plan import ClusterOptions

Decorator = Callable[[Any], Any]

_SPLIT_REMEDY = "write one number a board, the hub's first, like --tensor-split 3,1"
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-3, 1e6  # of a board in a split


class Group(click.Group):
    """A group of commands that answers a bare call with its help and exit code 2."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, unless there are no arguments."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


class StopOption(click.Option):
    """Stop strings; the environment's variable is one of them, not split at spaces."""

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The whole variable as one string."""
        value = self.resolve_envvar_value(ctx)
        return None if value is None else [value]


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes, written like 400M or 1.5G."""
    try:
        return None if value is None else parse_size(value)
    except UsageError as error:
        raise click.BadParameter(f"{error.message}: {error.hint}", ctx, param) from None


def _span(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds, written like 90s or 10m."""
    try:
        return None if value is None else parse_span(value)
    except UsageError as error:
        raise click.BadParameter(f"{error.message}: {error.hint}", ctx, param) from None


def _adapter(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A folder; "" for none, also where a chat was held with one."""
    if value == "":
        raise click.BadParameter("a folder is needed, or none", ctx, param)
    return "" if value == "none" else value


def _stops(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if "" in value:
        raise click.BadParameter("an empty text would stop before the first word", ctx, param)
    return value


def _setting(*flags: str, **attrs: Any) -> Decorator:
    name = max(flags, key=len).lstrip("-").replace("-", "_")
    return click.option(*flags, name, envvar=f"PICOEDGE_{name.upper()}", **attrs)


def _number(flag: str, kind: type, text: str) -> Decorator:
    default = getattr(SamplingOptions, flag[2:].replace("-", "_"))
    its_own = "" if flag == "--repeat-last-n" else "the model's, or "
    return _setting(flag, type=kind, help=f"{text} [default: {its_own}{default:g}]")


def together(*options: Decorator) -> Decorator:
    """A decorator that adds all of these options, in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = _setting(
    "-t", "--threads", type=click.IntRange(1, 1024), help="Threads [default: all cores]."
)
memory_option = _setting(
    "--memory", callback=_size, metavar="SIZE", help="Use no more memory than this, like 400M."
)

keep_option = _setting(
    "--keep", callback=_span, metavar="TIME", default="10m", show_default=True,
    help="How long a session's part of a model stays loaded after it; 0: not at all.",
)  # fmt: skip

kernels_option = _setting("--kernels", help="numpy or native [default: native where it runs].")

model_options = together(
    threads_option,
    memory_option,
    _setting(
        "-c", "--ctx-size", type=click.IntRange(1),
        help="Tokens of context [default: 4096, or what the model and the memory take].",
    ),
    _setting(
        "--window-io", type=click.Choice(["auto", "mmap", "direct"]), default="auto",
        show_default=True, help="How weights that do not fit the memory are read.",
    ),
    _setting(
        "--kv-bits", type=click.Choice(["16", "8"]), default="16", show_default=True,
        help="Bits of the context's cache; 8 takes half the memory.",
    ),
    click.option(
        "--verify", is_flag=True, envvar="PICOEDGE_VERIFY",
        help="Compare weights with their hashes while they are streamed.",
    ),
    kernels_option,
    click.option("--adapter", metavar="FOLDER", callback=_adapter,
        help="Add a LoRA adapter in PEFT's format, as `picoedge finetune` writes it; none: without "
        "the one that a chat was held with."),
)  # fmt: skip

split_options = together(
    click.option("-ts", "--tensor-split", metavar="3,1",
        help="Shares of the boards, the hub's (this board's) first [default: by their speed]."),
    click.option("--allreduce", type=click.Choice(["auto", "star", "exchange"]), default="auto",
        show_default=True, help="How partial sums are added: at the hub, or on every board."),
    click.option("--split-head", is_flag=True, envvar="PICOEDGE_SPLIT_HEAD",
        help="Split the vocabulary head as well; other boards then see the likely next tokens."),
)  # fmt: skip

cluster_options = together(
    click.option("--cluster", is_flag=True, envvar="PICOEDGE_USE_CLUSTER",
        help="Run over the boards of the mesh; this one's daemon must run."),
    click.option("--boards", type=click.IntRange(1, 64),
        help="Over this many boards [default: as many as are the quickest]."),
    split_options,
    _setting("--transport", type=click.Choice(TRANSPORT_CHOICES), default="auto",
        show_default=True, help="Transport of sums: auto takes the quicker for each two boards."),
    click.option("--wire", type=click.Choice(["f64", "f32", "f16", "q8"]), default="f64",
        show_default=True, help="Format of sums on the network: f64 is exact, others are smaller."),
)  # fmt: skip

sampling_options = together(
    _number("--temperature", float, "0 always takes the likeliest token."),
    _number("--top-k", int, "Choose among the K likeliest; 0: all."),
    _number("--top-p", float, "… and among those that make up this probability."),
    _number("--min-p", float, "… and at least this share of the likeliest."),
    _number("--repeat-penalty", float, "Disfavour recent tokens; 1: off."),
    _number("--repeat-last-n", int, "How many tokens are recent."),
    _setting("--seed", type=int, help="The same seed gives the same text [default: none]."),
    _setting("--stop", multiple=True, cls=StopOption, callback=_stops,
        help="Stop at this text (repeatable)."),
)  # fmt: skip

CONFIG_KEYS = (
    "model", "threads", "memory", "ctx_size", "window_io", "kv_bits", "verify", "kernels",
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "seed", "stop",
    "system", "transport", "verbose", "history", "think", "keep",
)  # fmt: skip

verbose_option = click.option(
    "-v", "--verbose", is_flag=True, envvar="PICOEDGE_VERBOSE", help="Report on stderr."
)
continue_options = together(
    click.option("--continue", "continued", is_flag=False, flag_value="", metavar="[ID]",
        help="Go on with a chat: the last one [of MODEL], or ID of `picoedge chats`."),
    click.option("--history/--no-history", default=True, envvar="PICOEDGE_HISTORY",
        help="Keep conversations and typed lines on this board's disk [default: keep]."),
)  # fmt: skip
template_options = together(
    click.option("--think/--no-think", "think", default=None, envvar="PICOEDGE_THINK",
        help="Have a model think before it answers, or not, if its chat template has a switch."),
    click.option("--template-var", "template_vars", multiple=True, metavar="NAME=VALUE",
        help="A variable of the chat template; the value as in JSON, or text (repeatable)."),
    click.option("--chat-template-kwargs", metavar="JSON",
        help="Several of them, as a JSON object."),
    click.option("--chat-template", metavar="NAME|FILE",
        help="The model's chat template from now on: chatml, llama2, llama3, mistral, gemma, … "
        "or a Jinja file; own: what came with it."),
)  # fmt: skip
system_option = _setting("--system", help="The system message of the conversation.")


def prompt_options(default_tokens: int, help_text: str) -> Decorator:
    """--prompt, with this help, and --n-tokens."""
    return together(
        click.option("-p", "--prompt", help=help_text),
        click.option("-n", "--n-tokens", type=click.IntRange(-1), default=default_tokens,
            show_default=True, help="Tokens of an answer at most; -1: until the context is full."),
    )  # fmt: skip


def chosen_cluster(values: Mapping[str, Any]) -> ClusterOptions | None:
    """Options for splitting a model over boards; None without --cluster."""
    if not values.get("cluster"):
        return None
    from picoedge.planner.cluster_plan import ClusterOptions

    allreduce, split = values["allreduce"], values["tensor_split"]
    return ClusterOptions(
        boards=values.get("boards"),
        split=parse_split(split) if split else (),
        allreduce=None if allreduce == "auto" else allreduce,
        split_head=values["split_head"],
        transport=values.get("transport", "auto"),
        wire=values.get("wire", "f64"),
    )


def chosen_variables(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Variables of the chat template, as they were given. Raises UsageError."""
    if values["chat_template_kwargs"]:
        try:
            several = json.loads(values["chat_template_kwargs"])
        except (ValueError, RecursionError):
            several = None
        if not isinstance(several, dict):
            raise UsageError(
                "--chat-template-kwargs is no JSON object", "write it like '{\"name\": true}'"
            )
        yield from several.items()
    for text in values["template_vars"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--template-var {text!r} has no value", "write it like NAME=VALUE")
        yield name.strip(), parse_variable(value)


def parse_variable(text: str) -> Any:
    """A value as in JSON; anything else is text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_split(text: str) -> tuple[float, ...]:
    """The weights in `3,1` or `1,0,2.5`, one a board. Raises UsageError."""
    from picoedge.planner.topology import MOST_BOARDS

    parts = text.split(",", MOST_BOARDS + 1)
    weights = tuple(_weight(part.strip(), text) for part in parts)
    if len(weights) > MOST_BOARDS:
        raise UsageError(f"a split over more than {MOST_BOARDS} boards", _SPLIT_REMEDY)
    if not any(weights):
        raise UsageError(f"the split {text!r} gives no board anything", _SPLIT_REMEDY)
    return weights


def _weight(part: str, text: str) -> float:
    try:
        weight = float(part)
    except ValueError:
        raise UsageError(f"not a split over boards: {text[:80]!r}", _SPLIT_REMEDY) from None
    if weight != 0 and not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
        raise UsageError(
            f"{part[:20]} is no weight in the split {text[:80]!r}",
            f"0 or a number from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}",
        )
    return weight


def model_argument(required: bool = True) -> Decorator:
    """MODEL, or -hf OWNER/REPO[:QUANT] in its place.

    None, where it may be missing, is the catalogue's default model.
    """
    return source_argument("model", "MODEL", required, envvar="PICOEDGE_MODEL")


def source_argument(name: str, metavar: str, required: bool, **attrs: Any) -> Decorator:
    """An argument that names a model, with -hf in its place."""
    argument = click.argument(name, required=False, metavar=metavar if required else f"[{metavar}]",
                              **attrs)  # fmt: skip
    option = click.option("-hf", "--hf-repo", metavar="OWNER/REPO[:QUANT]",
        help="A model of a Hugging Face hub instead, fetched and packed on first use.",
    )  # fmt: skip

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def merged(**values: Any) -> Any:
            repo = values.pop("hf_repo")
            if repo is not None:
                values[name] = _named_by_repo(name, repo)
            elif values[name] is None and required:
                ctx = click.get_current_context()
                param = next(param for param in ctx.command.params if param.name == name)
                raise click.MissingParameter(ctx=ctx, param=param)
            return command(**values)

        return argument(option(merged))

    return decorate


def _named_by_repo(argument: str, repo: str) -> str:
    """MODEL of -hf. Raises UsageError where MODEL is given as well."""
    from picoedge.registry.hub import PREFIX, parse_hub_name

    ctx = click.get_current_context()
    if ctx.get_parameter_source(argument) is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("-hf and a MODEL are both given", "one of them names the model")
    return f"{PREFIX}{parse_hub_name(repo)}"


def chosen_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options among a command's parameters. Raises UsageError naming the source."""
    names = SamplingOptions.__dataclass_fields__
    chosen = {name: values[name] for name in names if values.get(name) is not None}
    try:
        SamplingOptions(**chosen)
    except UsageError as error:
        raise _named_by_source(error) from None
    return chosen


def _named_by_source(error: UsageError) -> UsageError:
    """The same error, the flag, variable or file of the value put before it."""
    ctx, name = click.get_current_context(), error.message.split()[0]
    for param in ctx.command.params:
        if param.name == name:
            return UsageError(f"{source_of(ctx, param)}: {error.message}", error.hint)
    return error


def is_typed(name: str) -> bool:
    """Whether a parameter stands on the command line itself."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def source_of(ctx: click.Context, param: click.Parameter) -> str:
    """The flag, variable or file that the value of `param` came from."""
    source = ctx.get_parameter_source(param.name or "")
    if source is click.core.ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return f"{config_path()}: {param.name}"
    if isinstance(param, click.Argument):
        return str(param.metavar or param.name).strip("[]")
    return max(param.opts, key=len)


def config_path() -> Path:
    """The path of the user's config file, which need not exist."""
    return xdg_folder("CONFIG", os.environ) / "config.toml"


def config_defaults() -> dict[str, Any]:
    """Values of the config file by parameter name. Raises UsageError naming file and key."""
    path = config_path()
    try:
        values = parse_toml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = "not utf-8 text" if isinstance(error, UnicodeError) else str(error)
        if isinstance(error, OSError):
            reason = (error.strerror or reason).lower()
        raise UsageError(f"{path}: {reason}", "correct or remove it") from error
    return dict(_checked(path, name, value) for name, value in values.items())


def _checked(path: Path, name: str, value: Any) -> tuple[str, Any]:
    key = name.replace("-", "_")
    if key not in CONFIG_KEYS:
        hint = did_you_mean(key, CONFIG_KEYS) or f"known: {', '.join(CONFIG_KEYS)}"
        raise UsageError(f"{path}: no setting named {name!r}", hint)
    if isinstance(value, list) and key == "stop":
        return key, [str(item) for item in value]
    if isinstance(value, (bool, int, float, str)):
        # text, so that 2.5 threads are refused as they would be as a flag, not rounded
        return key, [str(value)] if key == "stop" else str(value)
    raise UsageError(f"{path}: {name} is {type(value).__name__}", "write a number or a text")
