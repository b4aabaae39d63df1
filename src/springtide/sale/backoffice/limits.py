"""What a request may take of the back office: its place among those under way, its body's length and its time."""

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from springtide.ports import Clock
from springtide.sale.backoffice.problems import RETRY_AFTER_S, ProblemError, problem

BODY_BYTES_MAX = 131_072
"""The longest body that is read: a thousand buyers of 64 letters each fit."""

BODY_S_MAX = 10.0
"""The longest time that a body may take to arrive."""

IN_FLIGHT_MAX = 256
"""Requests under way at once; more are answered 503 at once."""

ALWAYS_ANSWERED = frozenset({"/healthz", "/readyz", "/metrics"})
"""These tell how the service is, also when it is full."""


class Load(msgspec.Struct):
    """How near the limit of requests under way is; how many it has refused, and how many clients left meanwhile."""

    in_flight: int = 0
    refused: int = 0
    hung_up: int = 0


class Limits:
    """The middleware that keeps the limits."""

    def __init__(self, app: ASGIApp, clock: Clock, load: Load) -> None:
        """`load` is kept up to date."""
        self._app = app
        self._clock = clock
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the application's life."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        if self._load.in_flight >= IN_FLIGHT_MAX:
            self._load.refused += 1
            await _overloaded(scope, receive, send)
            return
        self._load.in_flight += 1
        try:
            await self._app(scope, _Body(receive, self._clock, Request(scope)).receive, send)
        except ClientDisconnect:
            self._load.hung_up += 1  # there is nobody to answer, and nothing was begun without its body
        finally:
            self._load.in_flight -= 1


class _Body:
    """A request's body on its way in. The refusals are raised inside whoever reads it."""

    def __init__(self, receive: Receive, clock: Clock, request: Request) -> None:
        self._receive = receive
        self._clock = clock
        self._declared = request.headers.get("content-length", "")
        self._bytes = 0
        self._whole = False
        self._until_s = clock.monotonic_s() + BODY_S_MAX

    async def receive(self) -> Message:
        if self._whole:  # what follows is the news that the client has gone, however late
            return await self._receive()
        if self._declared.isdigit() and int(self._declared[:20]) > BODY_BYTES_MAX:
            raise _too_large()
        try:
            async with self._clock.timeout(self._until_s - self._clock.monotonic_s()):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"send the body within {BODY_S_MAX:.0f} s"
            raise ProblemError(408, "request_timeout", "The request took too long", detail) from error
        self._bytes += len(message.get("body", b""))
        if self._bytes > BODY_BYTES_MAX:
            raise _too_large()
        self._whole = not message.get("more_body", False)
        return message


def _too_large() -> ProblemError:
    return ProblemError(413, "content_too_large", "Body too large", f"send at most {BODY_BYTES_MAX} bytes")


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    detail = f"{IN_FLIGHT_MAX} requests are under way; repeating this request is safe"
    await problem(ProblemError(503, "overloaded", "Overloaded", detail, headers))(scope, receive, send)
