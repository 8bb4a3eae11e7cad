"""A chat template that the user chose for a pack, by name or a file.

It is kept beside the pack, so that a pack that is made anew keeps it.
"""

from __future__ import annotations

import re
from pathlib import Path

from picoedge.errors import StorageError, TextError, UsageError
from picoedge.files import read_text_file, replace_file, sync
from picoedge.suggest import did_you_mean
from picoedge.text.template.named import TEMPLATES
from picoedge.text.template.template import (
    MAX_TEMPLATE_CHARACTERS,
    ChatTemplate,
    chosen_path,
)
from picoedge.text.tokenizer.base import TextSettings, Tokenizer

OWN = "own"  # the name of the model's own template
_ANSWER, _QUESTION = "zqxanswerxqz", "zqxquestionxqz"
_TALK = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _QUESTION},
]
_NAME = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,40}\]")
_LONGEST_STOP = 40


def choose_template(pack: Path, word: str) -> ChatTemplate | None:
    """The template that `word` names for a pack: a name of ours, a file, or "own".

    None where the model has none of its own. Raises UsageError, TextError.
    """
    if word == OWN:
        return ChatTemplate.load(pack, chosen=False)
    source = TEMPLATES.get(word)
    if source is None:
        if not Path(word).is_file():
            names = [*sorted(TEMPLATES), OWN]
            hint = did_you_mean(word, names) or f"a file, or one of {', '.join(names)}"
            raise UsageError(f"no chat template {word!r}", hint)
        source = read_text_file(Path(word), 4 * MAX_TEMPLATE_CHARACTERS)
    settings = TextSettings.read(pack)
    template = ChatTemplate(source, bos_token=settings.bos_token, eos_token=settings.eos_token)
    template.probe()  # before it is kept: a template that drops the question is of no use
    template.chosen = True
    return template


def keep_template(pack: Path, template: ChatTemplate | None) -> None:
    """Take this template for the pack from now on; None: the model's own. Raises StorageError."""
    path = chosen_path(pack)
    try:
        if template is None:
            path.unlink(missing_ok=True)
            sync(path.parent)
        else:
            replace_file(path, template.source.encode())
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


def end_answers(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Have answers end where a chosen template does: by a token, or where it writes text, by that.

    A model's own template needs none of this: its ends were found when it was packed.
    """
    try:
        text = template.render(template.probe().arrange(_TALK))
    except TextError:
        return
    after = text.partition(_ANSWER)[2].partition(_QUESTION)[0].lstrip()
    first = next(tokenizer.special_tokens.split(after), "")
    if isinstance(first, int):
        tokenizer.eos_ids = tokenizer.eos_ids | {first}
        return
    name = _NAME.match(first)
    stop = name[0] if name else first.partition("\n")[0].strip()
    if 2 < len(stop) <= _LONGEST_STOP:
        template.stops = (stop,)
