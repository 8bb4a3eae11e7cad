"""From a command's parameters to a model that runs, with progress and notes on stderr."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from picoedge.cli import reports
from picoedge.cli.options import chosen_cluster, chosen_sampling
from picoedge.cli.output import error_line, note, showing_progress, warn

if TYPE_CHECKING:
    from picoedge.engine.open import OpenPack
    from picoedge.engine.options import OpenOptions
    from picoedge.engine.session import LanguageModel, Prompt, Session
    from picoedge.progress import Progress
    from picoedge.store.pack.reader import Pack

    Model = TypeVar("Model", bound=LanguageModel)


def open_options(values: Mapping[str, Any], **changes: Any) -> OpenOptions:
    """How to open a model, from the options that every command with a model takes."""
    from picoedge.engine.options import OpenOptions

    chosen = {
        "threads": values["threads"],
        "memory_bytes": values["memory"],
        "n_ctx": values["ctx_size"],
        "window_io": values["window_io"],
        "kv_bits": int(values["kv_bits"]),
        "verify": values["verify"],
        "kernels": values["kernels"],
        "cluster": chosen_cluster(values),
        "sampling": chosen_sampling(values),
    }
    return OpenOptions(**{**chosen, **changes})


def open_pack(
    values: Mapping[str, Any], *, text: bool = True, template: bool = True, **changes: Any
) -> OpenPack:
    """The pack that MODEL names, opened; fetched and packed on first use."""
    from picoedge.engine import open as opening

    options = open_options(values, **changes)
    with showing_progress() as progress:
        opened = opening.open_pack(values["model"], options, progress, text=text, template=template)
    tell_of_lost_pages(opened.pack.path)
    return opened


def open_session(
    values: Mapping[str, Any], opened: OpenPack, prompt: Prompt | None = None
) -> Session:
    """The session of a command; `prompt` is the only one that it will answer."""
    from picoedge.cluster.open import load_anywhere
    from picoedge.engine import open as opening

    with showing_progress() as progress:
        session = opening.open_session(opened, load_anywhere, prompt, progress)
    _tell_of(session.model, values, session.describe())
    return session


def load(
    values: Mapping[str, Any],
    opened: OpenPack,
    load_model: Callable[[Pack, OpenOptions, Progress | None], Model],
) -> Model:
    """The model without a conversation."""
    with showing_progress() as progress:
        model = load_model(opened.pack, opened.options, progress)
    _tell_of(model, values)
    return model


def _tell_of(model: LanguageModel, values: Mapping[str, Any], *lines: str) -> None:
    tell_of_numpy(model.kernels.name, values["kernels"])
    if values.get("verbose"):
        for line in (*lines, reports.plan_line(model.memory_plan)):
            note(line, verbose=True)


def tell_of_numpy(running: str, asked: str | None) -> None:
    """Say why NumPy computes where it was not asked for: it is several times slower."""
    if running != "numpy" or asked is not None:
        return
    from picoedge.kernels.loader import describe_kernels

    reason = describe_kernels().partition(": ")[2]
    warn(f"running on NumPy: {reason}", "picoedge")


def tell_of_lost_pages(pack: Path) -> None:
    """End with one line and exit code 1 when a mapped file is cut, or its card pulled out."""
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
