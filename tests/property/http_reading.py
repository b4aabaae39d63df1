"""A second opinion on a stream of bytes: what h11 reads in it, what the counter should answer, what was answered."""

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import h11

from springtide.model import IDEMPOTENCY_KEY, IDENTIFIER, QUANTITY_MAX
from tests.property.http_grammar import SALE

STATUSES = {100, 200, 201, 202, 400, 401, 404, 405, 408, 409, 411, 413, 417, 422, 431, 501, 503}
"""What the counter may answer to whatever a client sends; 503 only where the model says so."""

OPERATORS = {b"/healthz": {200}, b"/metrics": {200}, b"/readyz": {200, 503}}

ENDING_CODES = {
    "bad_http",
    "content_too_large",
    "expectation_failed",
    "headers_too_large",
    "length_required",
    "not_implemented",
    "request_timeout",
}
"""Refusals of what could not be read, after which nothing is read any more."""

LATE_MS = 1_000_000_000_000
"""Purchases that say that they were sent before this moment, in 2001, come too late."""

ENDING_STATUSES = {400, 408, 411, 413, 417, 431, 501}
"""Theirs; an answer to HEAD has nothing else."""

_HEAD_MAX = 10_000_000
_SPACED = re.compile(rb"\A([!-~]+) +([!-~]+) +(?:HTTP|RTSP|ICE)/")


@dataclass(frozen=True)
class Asked:
    """One request as h11 reads it. `expects`: the client waits for `100 Continue`."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    closes: bool

    def values(self, name: bytes) -> list[bytes]:
        """The values of all headers of this name, in lower case."""
        return [value for one, value in self.headers if one == name]

    @property
    def expects(self) -> bool:
        return any(value.lower() == b"100-continue" for value in self.values(b"expect"))


class Rest(Enum):
    """What stands behind the last request that h11 could read."""

    NOTHING = "nothing"
    PART = "a request that is not whole"
    REFUSED = "what h11 refuses"
    IGNORED = "whatever it is, behind a request that ends the connection"


def second_opinion(data: bytes) -> tuple[list[Asked], Rest]:
    """The requests that h11 reads, a connection of its own for each, and what stands behind them.

    Put right is what RFC 9112 permits and h11 does not: empty lines before a request (2.2), and more than one space
    in the request line (3); and the names of two protocols that the counter's parser takes for HTTP, meaning the same.
    """
    asked: list[Asked] = []
    while data := _SPACED.sub(rb"\1 \2 HTTP/", data.lstrip(b"\r\n")):
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_MAX)
        try:
            reader.receive_data(data)
            request = reader.next_event()
            if not isinstance(request, h11.Request):
                return asked, Rest.PART
            if request.http_version not in (b"1.0", b"1.1"):
                return asked, Rest.REFUSED
            body = b""
            while isinstance(event := reader.next_event(), h11.Data):
                body += event.data
        except h11.RemoteProtocolError:
            return asked, Rest.REFUSED
        if not isinstance(event, h11.EndOfMessage):
            return asked, Rest.PART
        asked.append(_asked(request, bytes(body)))
        data = bytes(reader.trailing_data[0])
        if asked[-1].closes:
            return asked, Rest.IGNORED if data else Rest.NOTHING
    return asked, Rest.NOTHING


def _asked(request: h11.Request, body: bytes) -> Asked:
    headers = tuple((bytes(name), bytes(value)) for name, value in request.headers)
    options = {one.strip().lower() for name, value in headers if name == b"connection" for one in value.split(b",")}
    closes = b"close" in options or (request.http_version == b"1.0" and b"keep-alive" not in options)
    return Asked(bytes(request.method), bytes(request.target), headers, body, closes)


# --- what the counter should answer -------------------------------------------------------------------------


@dataclass
class Model:
    """A shop with tea and cups, enough for everybody; `tokens` names the buyers. It answers one connection in order."""

    tokens: dict[bytes, str]
    per_buyer_max: int
    made: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)

    def statuses(self, asked: Asked) -> set[int]:
        """What may be answered to this request, read as it is; a purchase that may succeed is taken to have."""
        path = _path(asked.target)
        reading = asked.method in (b"GET", b"HEAD")
        if path in OPERATORS:
            return OPERATORS[path] if reading else {405}
        if not path.startswith(b"/v1/sales/"):
            return {404}
        sale, *rest = path.removeprefix(b"/v1/sales/").split(b"/")
        if rest[:1] == [b"orders"]:
            return self._orders(asked, sale, rest[1:])
        if rest:
            return {404}
        return ({200} if sale == SALE.encode() else {404}) if reading else {405}

    def _orders(self, asked: Asked, sale: bytes, below: list[bytes]) -> set[int]:
        if asked.method == b"POST" and not below:
            return self._purchase(asked, sale)
        if len(below) > 1:
            return {404}
        if below == [b""]:
            # Nothing says whether an order without a name is all orders or none.
            return {200, 401, 404, 405}
        return self._told(asked, sale, below) if asked.method in (b"GET", b"HEAD") else {405}

    def _buyer(self, asked: Asked, sale: bytes) -> str | None:
        authorizations = asked.values(b"authorization")
        if sale != SALE.encode() or len(authorizations) != 1 or authorizations[0][:7].lower() != b"bearer ":
            return None
        return self.tokens.get(authorizations[0][7:])

    def _told(self, asked: Asked, sale: bytes, order: list[bytes]) -> set[int]:
        buyer = self._buyer(asked, sale)
        if buyer is None:
            return {401}
        if order:
            return {404}
        keys = asked.values(b"idempotency-key")
        if not keys:
            return {200}
        if len(keys) > 1 or not _is_key(keys[0]) or not _sent_is_good(asked):
            return {400}
        # A purchase that was never made may still be under way, as far as the counter knows.
        return {200} if (buyer, keys[0].decode()) in self.made else {202, 404}

    def _purchase(self, asked: Asked, sale: bytes) -> set[int]:
        buyer = self._buyer(asked, sale)
        if buyer is None:
            return {401}
        keys = asked.values(b"idempotency-key")
        if len(keys) != 1 or not _is_key(keys[0]):
            return {400}
        order = _order(asked.body)
        if order is None or not IDENTIFIER.fullmatch(order[0]) or not _sent_is_good(asked):
            return {400}
        sent = asked.values(b"purchase-sent-ms")
        return self._sell(buyer, keys[0].decode(), order, late=bool(sent) and int(sent[0]) < LATE_MS)

    def _sell(self, buyer: str, key: str, order: tuple[str, int], *, late: bool) -> set[int]:
        before = self.made.get((buyer, key))
        if before is not None:
            return {200} if before == order else {422}
        if order[0] not in ("tea", "cup"):
            return {404, 503} if late else {404}
        if late:
            return {503}
        held = sum(units for (who, _), (sku, units) in self.made.items() if (who, sku) == (buyer, order[0]))
        if held + order[1] > self.per_buyer_max:
            return {409}
        self.made[buyer, key] = order
        return {201}


def _path(target: bytes) -> bytes:
    """The path of a target in origin or absolute form (RFC 9112, 3.2)."""
    found = re.fullmatch(rb"(?:https?://[^/?#]*)?([^?]*)(?:\?.*)?", target, re.IGNORECASE | re.DOTALL)
    assert found is not None
    return found[1] or b"/"


def _is_key(key: bytes) -> bool:
    return IDEMPOTENCY_KEY.fullmatch(key.decode("latin-1")) is not None


def _sent_is_good(asked: Asked) -> bool:
    sent = asked.values(b"purchase-sent-ms")
    return not sent or (len(sent) == 1 and re.fullmatch(rb"[0-9]{1,15}", sent[0]) is not None)


class _NotJson(ValueError):
    """Python's reader is more liberal than RFC 8259."""


def _refuse(constant: str) -> None:
    raise _NotJson(constant)


class _Members(list[tuple[str, Any]]):
    """An object with all its members: a name may come twice."""


def _order(body: bytes) -> tuple[str, int] | None:
    """SKU and quantity when the body is an order, and would be one with any of a member's values; else None."""
    try:
        read = json.loads(body.decode(), parse_constant=_refuse, object_pairs_hook=_Members)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, _Members) or not all(_is_member(name, value) for name, value in read):
        return None
    order = dict(read)
    return (order["sku"], order.get("quantity", 1)) if "sku" in order else None


def _is_member(name: str, value: object) -> bool:
    if name == "sku":
        # Python's reader takes half a surrogate pair, which is no text.
        return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)
    return name == "quantity" and type(value) is int and 1 <= value <= QUANTITY_MAX


# --- what was answered --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """One answer; `code` is a problem's."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"

    @property
    def code(self) -> str:
        if self.headers.get("content-type") != "application/problem+json" or not self.body:
            return ""
        return str(json.loads(self.body)["code"])

    @property
    def ends(self) -> bool:
        """Whether it says that what came could not be read."""
        return self.closes and (self.code in ENDING_CODES or (not self.body and self.status in ENDING_STATUSES))


_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5]\d\d) [A-Z][A-Za-z ]+")
_HEADER_LINE = re.compile(r"([A-Z][A-Za-z-]*): ([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")


class Malformed(AssertionError):
    """What came back is not a row of whole answers."""


def read_answers(received: bytes, heads: list[bool], *, cut_short: bool = False) -> list[Said]:
    """The answers, interim ones included. `heads`: which requests were HEAD; `cut_short`: the last may be half.

    Raises Malformed.
    """
    answers: list[Said] = []
    final = 0
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        if not separator and cut_short:
            return answers
        status, headers = _read_head(head, whole=bool(separator))
        body = b""
        if status >= 200:
            size = int(headers["content-length"])
            # A refusal that ends the connection has a body when it is not certain that HEAD was asked.
            may_be_bare = final >= len(heads) or heads[final]
            last = headers.get("connection") == "close" and len(rest) in (0, size)
            if may_be_bare and (not rest if last else final < len(heads)):
                size = 0
            if len(rest) < size:
                if cut_short:
                    return answers
                raise Malformed(f"half a body: {received!r}")
            body, rest = rest[:size], rest[size:]
            final += 1
        answers.append(_checked(Said(status, headers, body)))
        received = rest
    return answers


def _read_head(head: bytes, *, whole: bool) -> tuple[int, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    found = _STATUS_LINE.fullmatch(lines[0])
    if found is None or not whole:
        raise Malformed(f"not the head of an answer: {head!r}")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _HEADER_LINE.fullmatch(line)
        if match is None or match[1].lower() in headers:
            raise Malformed(f"not a header, or one too many: {line!r}")
        headers[match[1].lower()] = match[2]
    return int(found[1]), headers


def _checked(said: Said) -> Said:
    if said.status == 100:
        if said.headers:
            raise Malformed(f"100 with headers: {said}")
        return said
    if not {"content-length", "content-type", "date"} <= said.headers.keys():
        raise Malformed(f"a header is missing: {said}")
    if said.body and "json" in said.headers["content-type"]:
        read = json.loads(said.body)
        if said.status >= 400 and (read["status"] != said.status or not read["detail"] or not read["code"]):
            raise Malformed(f"not a problem: {said}")
    return said
