"""One file over HTTP, with resume: what is on the disk already is not asked for again."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import IO, Any

from picoedge.errors import DownloadError
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.paths import COPY_BYTES, as_storage_error

_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_READ_BYTES = 1 << 16


class _Cut(Exception):
    """The transfer ended early; what arrived so far is kept."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and never from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise DownloadError(f"{req.full_url} redirects to {scheme}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class HttpFetch:
    """One download of `url` into `part`, at most `max_bytes` long."""

    url: str
    part: Path
    max_bytes: int
    exact_bytes: int | None
    how: FetchSettings
    progress: Callable[[int, int], None]
    # Waiting and trying again helps against cuts, not against no network.
    _reached: bool = field(default=False, init=False)

    def run(self) -> None:
        """Fetch the whole file, going on after cuts. Raises DownloadError, StorageError."""
        failures = 0
        while self._have() != self.exact_bytes:
            before = self._have()
            try:
                self._transfer(before)
                return
            except _Cut as cut:
                gained = self._have() - before
                failures = failures + 1 if gained < COPY_BYTES else 1
                if failures >= self.how.tries or not self._reached:
                    have = self._have()
                    where = f" after {have} bytes; pulling again goes on there" if have else ""
                    raise DownloadError(f"{self.url}: {cut}{where}") from cut
                self.how.pause(2.0**failures)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _transfer(self, start: int) -> None:
        headers = {"User-Agent": "picoedge", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            request = urllib.request.Request(self.url, headers=headers)
            opener = urllib.request.build_opener(_Redirects())
            response = opener.open(request, timeout=self.how.timeout_s)
        except urllib.error.HTTPError as error:
            error.close()
            self._reached = True
            self._refused(error, start)
            return
        except urllib.error.URLError as error:
            raise _Cut(f"cannot be reached: {_reason(error.reason)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(_reason(error)) from error
        except ValueError as error:
            what = f"{self.url} is not, or leads to what is not, a URL: {error}"
            raise DownloadError(what) from error
        self._reached = True
        with response:
            self._receive(response, start)

    def _refused(self, error: urllib.error.HTTPError, start: int) -> None:
        if error.code == 416 and start:
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return  # nothing is missing
            with as_storage_error(self.part):
                self.part.unlink()
            raise _Cut("the server has another file than the one begun")
        if error.code in _RETRIED_STATUS:
            raise _Cut(f"HTTP {error.code}")
        hint = {401: "it asks for an account", 403: "it asks for an account", 404: "it is gone"}
        raise DownloadError(f"{self.url}: HTTP {error.code}", hint.get(error.code, ""))

    def _receive(self, response: HTTPResponse, start: int) -> None:
        offset = start if self._goes_on(response, start) else 0
        length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""))
        total = offset + int(length[0]) if length else 0
        if total > self.max_bytes or (self.exact_bytes and total not in (0, self.exact_bytes)):
            raise DownloadError(
                f"{self.url} is {total} bytes, not {self.exact_bytes or self.max_bytes}",
                "its source has changed",
            )
        done = offset
        with as_storage_error(self.part):
            out = self.part.open("ab" if offset else "wb")
        with out:
            while chunk := self._read(response):
                done += len(chunk)
                if done > self.max_bytes:
                    raise DownloadError(f"{self.url} sends more than {self.max_bytes} bytes")
                with as_storage_error(self.part):
                    out.write(chunk)
                self.progress(done, total or self.exact_bytes or 0)
            with as_storage_error(self.part):
                out.flush()
        if done < (total or self.exact_bytes or 0):
            raise _Cut("the connection was cut")

    def _goes_on(self, response: HTTPResponse, start: int) -> bool:
        """Whether the body continues at byte `start`; a server may send the whole file instead."""
        if response.status != 206:
            return False
        match = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            with as_storage_error(self.part):
                self.part.unlink(missing_ok=True)
            raise _Cut("the server resumed at another place than was asked")
        return True

    def _read(self, response: HTTPResponse) -> bytes:
        try:
            return response.read(_READ_BYTES)
        except http.client.IncompleteRead as error:
            return error.partial
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(_reason(error)) from error


def _reason(error: Any) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
