"""The client of the merchant's API behind `springtide sale …`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import httpx
from cyclopts import Parameter

from springtide.errors import Refused, SpringtideError, UserError

KEY_VARIABLE = "SPRINGTIDE_API_KEY"
TIMEOUT_S = 30.0

_BAD_INPUT = frozenset({400, 413, 422})
_FAILED = 400


@Parameter(name="*")
@dataclass(frozen=True)
class Api:
    """Where the back office is, and how the answer is shown. The key never stands on the command line."""

    url: Annotated[str, Parameter(env_var="SPRINGTIDE_URL", help="The back office.")] = "http://127.0.0.1:8000"
    key_file: Annotated[Path | None, Parameter(help=f"A file with the API key; without it, {KEY_VARIABLE}.")] = None
    json: Annotated[bool, Parameter(negative=(), help="The API's answer as JSON.")] = False


DEFAULT = Api()


class Client:
    """One connection. Methods raise UserError for what the API calls bad input, and Refused for all else."""

    def __init__(self, api: Api) -> None:
        """Raises UserError when there is no key, or the address is none."""
        key = _key(api.key_file)
        try:
            self._http = httpx.Client(
                base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S, trust_env=False
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(f"--url {api.url}: not an address: {error}") from error

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:  # noqa: ANN401 - JSON, as the API describes it
        """An answer's JSON; parameters that are empty are left out."""
        return self._call("GET", path, params=_given(query)).json()

    def post(self, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - JSON, as above
        """An answer's JSON, None when it has none."""
        answer = self._call("POST", path, json=body, headers=headers)
        return answer.json() if answer.content else None

    def put(self, path: str, body: object, if_match: str) -> Any:  # noqa: ANN401 - JSON, as above
        """An answer's JSON."""
        return self._call("PUT", path, json=body, headers={"If-Match": if_match}).json()

    def delete(self, path: str) -> Any:  # noqa: ANN401 - JSON, as above
        """An answer's JSON."""
        return self._call("DELETE", path).json()

    def pages(self, path: str, member: str, **query: str | int) -> Iterator[Any]:
        """The rows of all pages."""
        after = ""
        while True:
            page = self.get(path, **{**query, "after": after})
            yield from page[member]
            if not (after := page["next"]):
                return

    @contextmanager
    def stream(self, path: str, **query: str | int) -> Iterator[Iterator[bytes]]:
        """An answer in pieces, as they come; it raises Refused also when it breaks off."""
        with (
            _plainly(self._http.base_url),
            self._http.stream("GET", path, params=_given(query)) as answer,
        ):
            if answer.status_code >= _FAILED:
                answer.read()
                raise _error(answer)
            yield answer.iter_bytes()

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:  # noqa: ANN401 - as httpx takes them
        with _plainly(self._http.base_url):
            answer = self._http.request(method, path, **request)
        if answer.status_code >= _FAILED:
            raise _error(answer)
        return answer


@contextmanager
def _plainly(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise UserError(f"--url {url}: not an address: write http://HOST:PORT") from error
    except httpx.HTTPError as error:
        raise Refused(f"{url}: {str(error) or type(error).__name__}; is the back office running?") from error


def _key(path: Path | None) -> str:
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "")
    else:
        try:
            key = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--key-file {path}: cannot be read: {error}") from error
    key = key.strip()
    if not key:
        raise UserError(
            f"no API key: set {KEY_VARIABLE}, or give --key-file; an owner makes one with `sale key create`"
        )
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the API key in {path or KEY_VARIABLE} is not one: it has characters that no key has")
    return key


def _given(query: Mapping[str, str | int]) -> dict[str, str | int]:
    return {name: value for name, value in query.items() if value != ""}


def _error(answer: httpx.Response) -> SpringtideError:
    try:
        members = answer.json()
        text = f"{members['detail']} ({answer.status_code} {members['code']})"
    except (ValueError, KeyError, TypeError):
        text = f"{answer.url}: answered {answer.status_code} and no problem: is this the back office?"
    return UserError(text) if answer.status_code in _BAD_INPUT else Refused(text)
