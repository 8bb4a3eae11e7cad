"""A Hugging Face hub on the loopback interface, true to its API's shape.

Listings come in pages (`Link: …; rel="next"`); large files are listed with their SHA-256 and lead
to a storage host, which is another port; small ones with their Git blob's SHA-1 and lead to another
path. Gated repositories and unknown ones answer 401 with `X-Error-Code`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".gguf", ".safetensors")


@dataclass
class HubSite:
    """The repositories, and what was asked: (host, path, the header Authorization)."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)  # repository: the token that may read it
    listing: Any = None  # instead of the true one
    altered: dict[str, bytes] = field(default_factory=dict)  # path: bytes sent in its place
    cut_after: list[int] = field(default_factory=list)
    page: int = 1000
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""
    storage_url: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        paths = [path.rpartition("/")[2] for host, path, _ in self.asked if host == "storage"]
        return paths + [p.rpartition("/")[2] for h, p, _ in self.asked if "/resolve-cache/" in p]


def entry_of(path: str, data: bytes) -> dict[str, Any]:
    """A line of the listing."""
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": path}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return entry


def _handler(site: HubSite, host: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            site.asked.append((host, self.path, token))
            path = urllib.parse.unquote(self.path)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main\?(.*)", path):
                self._list(match[1], match[2], token)
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path):
                self._resolve(match[1], match[2], token)
            elif match := re.fullmatch(r"/(?:api/resolve-cache|store)/([^/]+/[^/]+)/(.+)", path):
                self._send(match[1], match[2])
            else:
                self.send_error(404)

        def _refused(self, repo: str, token: str | None) -> bool:
            needed = site.gated.get(repo)
            known = repo in site.repos or site.listing is not None
            if known and (needed is None or token == f"Bearer {needed}"):
                return False
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo" if repo in site.repos else "RepoNotFound")
            self.end_headers()
            return True

        def _list(self, repo: str, query: str, token: str | None) -> None:
            if self._refused(repo, token):
                return
            entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "sub"}]
            entries += [entry_of(path, data) for path, data in site.repos.get(repo, {}).items()]
            start = int(urllib.parse.parse_qs(query).get("cursor", ["0"])[0])
            page = entries[start : start + site.page] if site.listing is None else site.listing
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            if start + site.page < len(entries):
                more = f"{site.url}/api/models/{repo}/tree/main?recursive=1&cursor="
                self.send_header("Link", f'<{more}{start + site.page}>; rel="next"')
            self.end_headers()
            self.wfile.write(json.dumps(page).encode())

        def _resolve(self, repo: str, path: str, token: str | None) -> None:
            if self._refused(repo, token):
                return
            large = path.endswith(LARGE)
            quoted = urllib.parse.quote(path)
            where = f"{site.storage_url}/store" if large else "/api/resolve-cache"
            self.send_response(302 if large else 307)
            self.send_header("Location", f"{where}/{repo}/{quoted}")
            self.end_headers()

        def _send(self, repo: str, path: str) -> None:
            data = site.altered.get(path, site.repos[repo][path])
            start, ranged = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if ranged:
                start = int(ranged[1])
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            end = start + site.cut_after.pop(0) if site.cut_after else len(data)
            self.wfile.write(data[start:end])

    return Handler


@contextmanager
def hub_site() -> Iterator[HubSite]:
    """A hub and its storage host, served until the block ends."""
    site = HubSite()
    with ExitStack() as stack:
        for host in ("hub", "storage"):
            server = stack.enter_context(
                ThreadingHTTPServer(("127.0.0.1", 0), _handler(site, host))
            )
            url = f"http://127.0.0.1:{server.server_port}"
            setattr(site, "url" if host == "hub" else "storage_url", url)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield site
