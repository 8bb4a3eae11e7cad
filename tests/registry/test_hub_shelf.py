"""Models of a hub: fetched, checked by the hub's own record, packed, and used without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import shelf_models
from cli_runs import must_not_run
from hub_site import HubSite, entry_of, hub_site

from picoedge.cli import shelf as shelf_commands
from picoedge.cli.main import main
from picoedge.errors import DownloadError, ModelError, PicoedgeError, StorageError
from picoedge.progress import no_progress
from picoedge.registry import hub_download
from picoedge.registry.catalogue import FetchSettings, parse_entry
from picoedge.registry.shelf import Shelf

REPO, NAME = "Someone/Tiny-GGUF", "someone.tiny-gguf.q8_0"
GGUF = "Tiny-Q8_0.gguf"


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return shelf_models.write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


@pytest.fixture
def site(gguf_bytes: bytes) -> Iterator[HubSite]:
    with hub_site() as site:
        site.repos[REPO] = {GGUF: gguf_bytes, "README.md": b"# Tiny", "mmproj.gguf": b"GGUF"}
        yield site


def shelf_of(site: HubSite, folder: Path, token: str = "") -> Shelf:
    how = FetchSettings(site.url, token, timeout_s=10, tries=3, pause=lambda seconds: None)
    return Shelf(folder, {}, how)


def test_a_model_is_fetched_packed_and_then_needs_no_network(site: HubSite, tmp_path: Path) -> None:
    shelf = shelf_of(site, tmp_path)
    assert shelf.open(f"hf:{REPO}").path == tmp_path / f"{NAME}.pico"
    assert site.fetched() == [GGUF]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".{NAME}.lock", f"{NAME}.pico"]
    asked = len(site.asked)
    for again in (f"hf:{REPO}", f"hf:{REPO.lower()}", f"hf:{REPO}:q8_0", NAME):
        assert shelf.open(again).path == shelf.find(again) == tmp_path / f"{NAME}.pico"
    assert len(site.asked) == asked
    assert shelf.remove(NAME) > 0
    with pytest.raises(ModelError, match="not on this board yet"):
        shelf.find(f"hf:{REPO}")


def test_a_cut_download_goes_on_in_another_process(site: HubSite, tmp_path: Path) -> None:
    size = len(site.repos[REPO][GGUF])
    site.cut_after = [size // 4, 10, 10]
    with pytest.raises(DownloadError, match="goes on there"):
        shelf_of(site, tmp_path).open(f"hf:{REPO}")
    assert shelf_of(site, tmp_path).open(f"hf:{REPO}").is_whole
    assert len(site.fetched()) == 4


def test_a_folder_of_floats_with_small_files_by_their_git_hash(
    site: HubSite, tmp_path: Path
) -> None:
    source = shelf_models.write_folder(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    site.repos["Someone/Tiny"] = {**files, "empty.txt": b"", "tokenizer_config.json": b"{}"}
    site.page = 2
    pack = shelf_of(site, tmp_path / "shelf").open("hf:Someone/Tiny")
    assert pack.path.name == "someone.tiny.floats.pico"
    assert sorted(site.fetched()) == sorted([*files, "tokenizer_config.json"])
    site.altered["config.json"] = files["config.json"] + b" "
    site.repos["Someone/Other"] = site.repos["Someone/Tiny"]
    with pytest.raises(DownloadError, match=r"config\.json"):
        shelf_of(site, tmp_path / "shelf").open("hf:Someone/Other")


def test_parts_are_fetched_together(site: HubSite, tmp_path: Path, gguf_bytes: bytes) -> None:
    parts = [f"Q4_0/T-Q4_0-0000{i}-of-00002.gguf" for i in (1, 2)]
    other = shelf_models.write_gguf(tmp_path / "y.gguf", seed=2).read_bytes()
    site.repos["o/split"] = dict(zip(parts, (gguf_bytes, other), strict=True))
    with pytest.raises(ModelError, match="is there twice"):  # both are whole models, in truth
        shelf_of(site, tmp_path / "s").open("hf:o/split")
    assert sorted(site.fetched()) == ["T-Q4_0-00001-of-00002.gguf", "T-Q4_0-00002-of-00002.gguf"]


PARTS = [f"T-Q4_0-0000{i}-of-00002.gguf" for i in (1, 2)]


def upload(site: HubSite, version: str) -> list[bytes]:
    """A publisher's two parts, of one size whatever the version."""
    contents = [f"{version} {name}".encode() * 99 for name in PARTS]
    site.repos["o/split"] = dict(zip(PARTS, contents, strict=True))
    return contents


def fetch_parts(site: HubSite, folder: Path) -> list[bytes]:
    how = shelf_of(site, folder).how
    choice = hub_download.look_up(hub_download.HubName("o/split"), how)
    first = hub_download.fetch_choice(choice, folder / "hub", no_progress, how)
    return [(first.parent / name).read_bytes() for name in PARTS]


def test_parts_of_two_uploads_are_not_put_together(site: HubSite, tmp_path: Path) -> None:
    old = upload(site, "old")
    site.cut_after = [len(old[0]), 1, 1, 1]
    with pytest.raises(DownloadError):
        fetch_parts(site, tmp_path)
    assert (tmp_path / "hub" / PARTS[0]).read_bytes() == old[0]
    new = upload(site, "new")
    assert fetch_parts(site, tmp_path) == new
    assert fetch_parts(site, tmp_path) == new
    newer = upload(site, "xyz")  # all of the former is here: packing was killed
    assert fetch_parts(site, tmp_path) == newer


def test_finished_files_are_hashed_once(
    site: HubSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = upload(site, "new")
    assert fetch_parts(site, tmp_path) == new
    fetched = len(site.fetched())
    with monkeypatch.context() as patch:
        patch.setattr(hub_download, "hash_file", must_not_run)
        assert fetch_parts(site, tmp_path) == new
    for mark in (tmp_path / "hub").glob(".*"):  # of an earlier version of picoedge there are none
        mark.unlink()
    (tmp_path / "hub" / PARTS[1]).write_bytes(new[0])
    assert fetch_parts(site, tmp_path) == new
    assert site.fetched()[fetched:] == PARTS[1:]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokenizer_config.json": b'{"tokenizer_class": "BartTokenizer"}'}, "BartTokenizer"),
        ({"config.json": b'{"model_type": "mamba"}'}, "mamba"),
    ],
)
def test_a_folder_of_an_unknown_kind_is_refused_before_its_weights_are_fetched(
    site: HubSite, tmp_path: Path, changes: dict[str, bytes], says: str
) -> None:
    source = shelf_models.write_folder(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    model = json.loads(files.pop("tokenizer.json"))["model"]
    files |= {"vocab.json": json.dumps(model["vocab"]).encode(), "merges.txt": b"#version: 0.2\n"}
    files["tokenizer_config.json"] = b'{"tokenizer_class": "GPT2Tokenizer"}'
    site.repos["o/sound"], site.repos["o/odd"] = files, {**files, **changes}
    with pytest.raises(PicoedgeError, match=says):
        shelf_of(site, tmp_path).open("hf:o/odd")
    assert "model.safetensors" not in site.fetched()
    assert shelf_of(site, tmp_path).open("hf:o/sound").is_whole


@pytest.mark.parametrize("kind", ["same size", "shorter", "longer"])
def test_a_file_that_differs_from_the_hub_s_record_is_not_used(
    site: HubSite, tmp_path: Path, kind: str
) -> None:
    sound = site.repos[REPO][GGUF]
    wrong = {"same size": sound[:-1] + b"?", "shorter": sound[:-1], "longer": sound + b"?"}
    site.altered[GGUF] = wrong[kind]
    with pytest.raises(DownloadError):
        shelf_of(site, tmp_path).open(f"hf:{REPO}")
    assert not (tmp_path / f"{NAME}.pico").exists()
    site.altered.clear()
    assert shelf_of(site, tmp_path).open(f"hf:{REPO}").is_whole  # nothing wrong was kept


def test_a_file_without_a_hash_is_not_fetched(site: HubSite, tmp_path: Path) -> None:
    site.listing = [{**entry_of(GGUF, b"x"), "lfs": None, "oid": ""}]
    with pytest.raises(DownloadError, match="without a hash"):
        shelf_of(site, tmp_path).open(f"hf:{REPO}")
    assert site.fetched() == []


def test_a_gated_repository_needs_a_token_that_storage_never_sees(
    site: HubSite, tmp_path: Path
) -> None:
    source = shelf_models.write_folder(tmp_path / "source")
    site.repos["o/gated"] = {path.name: path.read_bytes() for path in source.iterdir()}
    site.gated["o/gated"] = "hf_right"
    for token, hint in (("", "licence must be accepted"), ("hf_wrong", "licence must")):
        with pytest.raises(DownloadError, match="401") as caught:
            shelf_of(site, tmp_path / "s", token).open("hf:o/gated")
        assert hint in caught.value.hint
    shelf_of(site, tmp_path / "s", "hf_right").open("hf:o/gated")
    assert {token for host, _, token in site.asked if host == "storage"} == {None}
    with pytest.raises(DownloadError, match="401") as caught:
        shelf_of(site, tmp_path / "s").open("hf:o/unknown")
    assert "no such repository" in caught.value.hint
    assert "hf_right" not in repr(shelf_of(site, tmp_path, "hf_right"))


def test_a_disk_that_is_too_small_is_told_before(
    site: HubSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from picoedge.registry import download

    monkeypatch.setattr(download, "free_bytes", lambda folder: 1000)
    with pytest.raises(StorageError, match="are needed"):
        shelf_of(site, tmp_path).open(f"hf:{REPO}")
    assert site.fetched() == []


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    how = FetchSettings("http://127.0.0.1:9", tries=1)
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        Shelf(tmp_path, {}, how).open(f"hf:{REPO}")
    assert "picoedge list" in caught.value.hint


def test_a_listing_that_leads_elsewhere_or_is_none(site: HubSite, tmp_path: Path) -> None:
    for listing in ({"error": "no"}, [{"type": "file"}]):
        site.listing = listing
        with pytest.raises(DownloadError):
            hub_download.look_up(hub_download.HubName(REPO), shelf_of(site, tmp_path).how)


def test_a_catalogue_entry_of_a_repository(site: HubSite, tmp_path: Path) -> None:
    values = {
        "name": "tiny", "description": "", "licence": "MIT", "bytes": 10, "memory": "10M",
        "sources": [f"hf:{REPO}:Q8_0"],
    }  # fmt: skip
    entry = parse_entry(values, "tiny.toml")
    shelf = Shelf(tmp_path, {"tiny": entry}, shelf_of(site, tmp_path).how)
    assert shelf.open("tiny").path == tmp_path / "tiny.pico"
    assert shelf.open(None if entry.default else "tiny").is_whole


def test_the_commands(
    site: HubSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PICOEDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> str:
        code = main(argv)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    shown = json.loads(run("show", "-hf", REPO, "--json"))
    assert shown["files"].keys() == {GGUF}
    assert shown["quantization"] == "Q8_0"
    assert site.fetched() == []
    with monkeypatch.context() as patch:
        patch.setattr(shelf_commands, "available_bytes", lambda: 200 << 20)
        patch.setattr(shelf_commands, "cluster_budgets", lambda: [400 << 20] * 2)
        told = []
        for _ in range(2):
            assert main(["pull", "-hf", f"{REPO}:Q8_0"]) == 0
            out, err = capsys.readouterr()
            assert NAME in out
            told.append(err)
    assert "(estimated) of memory, 200 MB are free here: its weights will be streamed" in told[0]
    assert "over the cluster's boards (--cluster) it fits" in told[0]
    assert told[1] == ""  # it is here
    assert NAME in run("list")
    answer = json.loads(run("generate", "-hf", REPO, "-p", "ab", "--raw", "-n", "3", "--json"))
    assert answer["model"] == NAME
    assert "budget" in run("plan", "-hf", REPO)
    assert "tiny.pico" in run("pack", "-hf", REPO, "-o", "tiny.pico")
    assert (tmp_path / "tiny.pico" / "picoedge.json").is_file()
    assert main(["show", "x", "-hf", REPO]) == 2
    assert main(["generate", "-p", "x"]) == 2
    assert "missing MODEL" in capsys.readouterr().err
