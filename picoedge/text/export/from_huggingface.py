"""Export a Hugging Face folder's tokenizer: copy its file, or build it, and derive the settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picoedge.errors import TextError
from picoedge.files import read_json_if_any, read_text_file
from picoedge.text.export.byte_level import (
    MERGES_FILE,
    VOCABULARY_FILE,
    has_merges,
    write_from_merges,
)
from picoedge.text.export.json_head import read_head
from picoedge.text.export.sentencepiece_proto import NO_DUMMY_PREFIX
from picoedge.text.tokenizer.base import (
    END_OF_TURN,
    JSON_FILE,
    SENTENCEPIECE_FILE,
    SETTINGS_FILE,
    SPACE,
    AddedToken,
    TextSettings,
    read_added,
)
from picoedge.text.tokenizer.load import begins_with, load_sentencepiece, load_tokenizer_json

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Gemma's tokenizer.json of 262,144 tokens has 33 MB and takes a second and hundreds of MB to parse;
# the SentencePiece model beside it takes a tenth of that.
_LARGE_JSON_BYTES = 12 << 20
_MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class Folder:
    """The small JSON files of a model folder; missing ones are empty."""

    path: Path
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    model: Mapping[str, Any]
    names: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Folder:
        """Read them. Raises TextError where one is not a JSON object."""
        files = (SETTINGS_FILE, "generation_config.json", "config.json", "special_tokens_map.json")
        return cls(path, *(read_json_if_any(path / name) for name in files))

    def token(self, key: str) -> str:
        """Text of `bos_token`, `eos_token` …; "" where the folder names none."""
        value = self.tokenizer.get(key) or self.names.get(key) or ""
        return str(value.get("content", "") if isinstance(value, dict) else value)

    def special_names(self) -> set[str]:
        """Texts of all tokens that the files call special."""
        listed = self.names.get("additional_special_tokens") or []
        values = [*self.names.values(), *(listed if isinstance(listed, list) else [])]
        return {str(v.get("content", "") if isinstance(v, dict) else v) for v in values}

    def control_names(self) -> list[str]:
        """Texts of the tokens that the files name by their part, or list as special beside."""
        named = map(self.token, ("bos_token", "eos_token", "unk_token", "pad_token"))
        lists = [each.get("additional_special_tokens") for each in (self.tokenizer, self.names)]
        listed = [value for each in lists if isinstance(each, list) for value in each]
        texts = (v.get("content") if isinstance(v, dict) else v for v in listed)
        return [text for text in (*named, *texts) if isinstance(text, str) and text]

    def token_ids(self, key: str) -> Iterator[int]:
        """Ids that the configs give for `key`, as `eos_token_id`."""
        for values in (self.generation, self.model, self.model.get("text_config")):
            ids = values.get(key) if isinstance(values, Mapping) else None
            for value in ids if isinstance(ids, list) else [ids]:
                if isinstance(value, int) and value >= 0:
                    yield value


def write_folder_tokenizer(source: Path, folder: Path) -> TextSettings:
    """Copy the tokenizer into `folder` and return its settings. Raises TextError."""
    configs = Folder.read(source)
    as_json, as_model = source / JSON_FILE, source / SENTENCEPIECE_FILE
    large = as_json.exists() and as_json.stat().st_size > _LARGE_JSON_BYTES
    head = read_head(as_json) if large and as_model.exists() else {}
    told = "added_tokens" in head or configs.tokenizer.get("added_tokens_decoder")
    if as_model.exists() and (not as_json.exists() or (large and told)):
        try:
            model = load_sentencepiece(as_model, "get a sound copy")
        except TextError:  # another program's file of this name
            if not as_json.exists():
                raise
        else:
            return _copy_model(model, configs, head, folder)
    if as_json.exists():
        return _copy_json(configs, folder)
    if has_merges(source):
        return _build_json(configs, folder)
    raise TextError(
        f"{source} has no tokenizer ({JSON_FILE}, {SENTENCEPIECE_FILE}, or {VOCABULARY_FILE} with "
        f"{MERGES_FILE})",
        "get a complete folder",
    )


def find_template(source: Path) -> str | None:
    """The chat template, from its own file or a config. Raises TextError."""
    if (source / "chat_template.jinja").exists():
        return read_text_file(source / "chat_template.jinja", _MAX_TEMPLATE_BYTES)
    for name in (SETTINGS_FILE, "chat_template.json"):
        value = read_json_if_any(source / name).get("chat_template")
        if isinstance(value, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return value
    return None


def _settings(
    configs: Folder,
    find: Callable[[str], int | None],
    add_bos: bool,
    space_prefix: str,
    added: Mapping[int, AddedToken],
    special: Mapping[str, int],
) -> TextSettings:
    """`find`: id of a token's text; `add_bos`: default where no config decides."""
    bos_token, eos_token = configs.token("bos_token"), configs.token("eos_token")
    bos = find(bos_token) if bos_token else next(configs.token_ids("bos_token_id"), None)
    ends = {*configs.token_ids("eos_token_id"), find(eos_token) if eos_token else None}
    ends |= {i for text, i in special.items() if text in END_OF_TURN}
    wanted = configs.tokenizer.get("add_bos_token")
    return TextSettings(
        bos_id=bos,
        eos_ids=frozenset(i for i in ends if i is not None),
        add_bos=wanted if isinstance(wanted, bool) else add_bos,
        space_prefix=space_prefix,
        bos_token=bos_token,
        eos_token=eos_token,
        added=added,
    )


def _copy_json(configs: Folder, folder: Path) -> TextSettings:
    settings = _json_settings(configs, configs.path / JSON_FILE)
    shutil.copyfile(configs.path / JSON_FILE, folder / JSON_FILE)
    return settings


def _build_json(configs: Folder, folder: Path) -> TextSettings:
    both, added = (configs.tokenizer, configs.model), _added({}, configs, {})
    target = folder / JSON_FILE
    write_from_merges(configs.path, target, both, added, configs.control_names())
    return _json_settings(configs, target)


def _json_settings(configs: Folder, path: Path) -> TextSettings:
    """`path`: of the tokenizer.json."""
    tokenizer = load_tokenizer_json(path)
    first = begins_with(tokenizer, path)
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    bos = tokenizer.token_to_id(configs.token("bos_token"))
    # Whether texts begin with BOS is what the file's own rules do.
    begins = bos is not None and first == [bos]
    return _settings(configs, tokenizer.token_to_id, begins, "never", {}, special)


def _copy_model(
    model: SentencePieceProcessor, configs: Folder, head: Mapping[str, Any], folder: Path
) -> TextSettings:
    """`head`: what the tokenizer.json beside it says; that is what others read, so it counts."""
    added = _added(_control_pieces(model), configs, head)
    ids = {token.text: i for i, token in added.items()}
    prefix = _space_prefix(model, configs, head)
    shutil.copyfile(configs.path / SENTENCEPIECE_FILE, folder / SENTENCEPIECE_FILE)
    if prefix != "always":
        with (folder / SENTENCEPIECE_FILE).open("ab") as file:
            file.write(NO_DUMMY_PREFIX)
    special = {text: i for text, i in ids.items() if added[i].special}
    return _settings(configs, ids.get, True, prefix, added, special)


def _space_prefix(model: SentencePieceProcessor, configs: Folder, head: Mapping[str, Any]) -> str:
    if "normalizer" in head and "pre_tokenizer" in head:
        return _space_prefix_in(head)
    if not model.normalize("a").startswith(SPACE):
        return "never"
    if configs.tokenizer.get("add_prefix_space") is False:
        return "never"
    return "first" if configs.tokenizer.get("legacy") is False else "always"


def _space_prefix_in(head: Mapping[str, Any]) -> str:
    """Place of the space that a tokenizer.json adds: before each part, the first, or nowhere."""
    if any(step.get("type") == "Prepend" for step in _steps(head["normalizer"], "normalizers")):
        return "always"
    schemes = {"always": "always", "first": "first"}
    for step in _steps(head["pre_tokenizer"], "pretokenizers"):
        if step.get("type") == "Metaspace":
            return schemes.get(str(step.get("prepend_scheme")), "never")
    return "never"


def _steps(value: Any, key: str) -> list[Mapping[str, Any]]:
    """A rule of a tokenizer.json, or the rules of its sequence."""
    if not isinstance(value, Mapping):
        return []
    steps = value.get(key, [value])
    return [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, list) else []


def _control_pieces(model: SentencePieceProcessor) -> dict[int, AddedToken]:
    return {
        i: AddedToken(model.id_to_piece(i), special=True)
        for i in range(model.vocab_size())
        if model.is_control(i) or model.is_unknown(i)
    }


def _added(
    own: Mapping[int, AddedToken], configs: Folder, head: Mapping[str, Any]
) -> dict[int, AddedToken]:
    """The vocabulary's `own`, and those that the configs and the head of a tokenizer.json list."""
    added = dict(own)
    try:
        added |= read_added({str(token["id"]): token for token in head.get("added_tokens") or ()})
        added |= read_added(configs.tokenizer.get("added_tokens_decoder") or {})
        names = configs.special_names()
        listed = read_json_if_any(configs.path / "added_tokens.json").items()
        named = {str(i): {"content": text, "special": text in names} for text, i in listed}
        added = read_added(named) | added
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TextError(f"{configs.path}: damaged added tokens: {error}") from error
    return {i: AddedToken(t.text, t.special or t.text in END_OF_TURN) for i, t in added.items()}
