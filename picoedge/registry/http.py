"""One file over HTTP, with resume: bytes on the disk already are not requested again."""

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
from picoedge.fields import TooManyValuesError, parse_json
from picoedge.registry.catalogue import FetchSettings
from picoedge.registry.paths import COPY_BYTES, as_storage_error

_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_READ_BYTES = 1 << 16
_MAX_JSON = 4 << 20
_NEXT = re.compile(r'<([^<>\s]+)>\s*;\s*rel="next"')


class _Cut(Exception):
    """The transfer ended early; what arrived so far is kept."""


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


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
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and _origin(newurl) == _origin(req.full_url):
            request.add_unredirected_header("Authorization", token)
        return request


@dataclass
class HttpFetch:
    """One download of `url` into `part`, at most `max_bytes` long."""

    url: str
    part: Path
    max_bytes: int
    exact_bytes: int | None
    how: FetchSettings
    progress: Callable[[int, int], None]
    to_hub: bool = False  # to the endpoint itself, which is shown the user's token
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
        try:
            response = _open(self.url, self.how, start, to_hub=self.to_hub)
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
            what = f"{self.url} is not, or redirects to something that is not, a URL: {error}"
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
        raise DownloadError(f"{self.url}: HTTP {error.code}", _refusal_hint(error, self.how))

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


def _open(url: str, how: FetchSettings, start: int = 0, *, to_hub: bool) -> HTTPResponse:
    request = urllib.request.Request(
        url, headers={"User-Agent": "picoedge", "Accept-Encoding": "identity"}
    )
    if start:
        request.add_header("Range", f"bytes={start}-")
    if to_hub and how.hf_token:  # unredirected: a storage host must not see it
        request.add_unredirected_header("Authorization", f"Bearer {how.hf_token}")
    response: HTTPResponse = urllib.request.build_opener(_Redirects()).open(
        request, timeout=how.timeout_s
    )
    return response


def _refusal_hint(error: urllib.error.HTTPError, how: FetchSettings) -> str:
    """The remedy where a server refuses; the hub gives the reason in a header of its own."""
    why = error.headers.get("X-Error-Code", "")
    if error.code in (401, 403):
        if why == "GatedRepo":
            return (
                "its licence must be accepted: open its page in a browser, accept, and set "
                "HF_TOKEN to a token of that account (huggingface.co/settings/tokens)"
            )
        if how.hf_token:
            return "HF_TOKEN is not allowed to read it, or there is no such repository"
        return "there is no such repository, or it asks for an account: set HF_TOKEN to a token"
    return "it is gone, or was never there: check the name" if error.code == 404 else ""


def fetch_json(url: str, how: FetchSettings) -> tuple[Any, str]:
    """A page of the hub's API, and the address of the next one ("": none). Raises DownloadError."""
    for attempt in range(1, how.tries + 1):
        try:
            with _open(url, how, to_hub=True) as response:
                body = response.read(_MAX_JSON + 1)
                following = _NEXT.search(response.headers.get("Link", ""))
            break
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _RETRIED_STATUS or attempt == how.tries:
                hint = _refusal_hint(error, how)
                raise DownloadError(f"{url}: HTTP {error.code}", hint) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DownloadError(
                f"{url} cannot be reached: {_reason(getattr(error, 'reason', error))}",
                "connect this board once; models that are here already need no network "
                "(picoedge list)",
            ) from error
        how.pause(2.0**attempt)
    if len(body) > _MAX_JSON:
        raise DownloadError(f"{url} sends more than {_MAX_JSON} bytes")
    try:
        value = parse_json(body)
    except TooManyValuesError as error:
        raise DownloadError(f"{url}: its answer {error}") from error
    except (ValueError, RecursionError) as error:
        raise DownloadError(f"{url} is not JSON", "is HF_ENDPOINT a hub?") from error
    return value, following[1] if following else ""


def _reason(error: Any) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
