"""What a request may take of the back office."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from springtide.drivers.memory.clock import VirtualClock
from springtide.sale.backoffice.limits import BODY_BYTES_MAX, BODY_S_MAX, IN_FLIGHT_MAX, Limits, Load
from springtide.sale.backoffice.problems import ProblemError


def scope(path: str = "/v1/sales", **headers: str) -> Scope:
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "headers": encoded, "query_string": b""}


async def nothing() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


class Sent:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)


async def reads_all(_: Scope, receive: Receive, send: Send) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    await send({"type": "done", "size": size})


def pieces(*sizes: int, endless: bool = False) -> Receive:
    left = list(sizes)

    async def receive() -> Message:
        if not left:
            return await nothing()
        size = left.pop(0)
        return {"type": "http.request", "body": b"x" * size, "more_body": bool(left) or endless}

    return receive


async def test_a_body_up_to_the_limit_is_read_and_no_further() -> None:
    load = Load()
    limits = Limits(reads_all, VirtualClock(), load)
    sent = Sent()
    await limits(scope(), pieces(BODY_BYTES_MAX - 1, 1), sent)
    assert sent.messages == [{"type": "done", "size": BODY_BYTES_MAX}]
    for receive, declared in ((pieces(BODY_BYTES_MAX, 1), {}), (nothing, {"content_length": str(BODY_BYTES_MAX + 1)})):
        with pytest.raises(ProblemError) as refused:
            await limits(scope(**declared), receive, sent)
        assert refused.value.status_code == 413
    assert load.in_flight == 0


async def test_a_body_that_trickles_in_is_given_up() -> None:
    clock = VirtualClock()
    limits = Limits(reads_all, clock, Load())
    slow = asyncio.create_task(limits(scope(), pieces(1, 1, endless=True), Sent()))
    await clock.advance(BODY_S_MAX - 0.1)
    assert not slow.done()
    await clock.advance(0.2)
    with pytest.raises(ProblemError) as refused:
        await slow
    assert refused.value.status_code == 408


async def test_the_news_that_a_client_has_gone_may_take_longer_than_a_body() -> None:
    async def waits(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()

    clock = VirtualClock()
    waiting = asyncio.create_task(Limits(waits, clock, Load())(scope(), pieces(1), Sent()))
    await clock.advance(2 * BODY_S_MAX)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_beyond_the_limit_requests_are_refused_at_once_and_health_is_not() -> None:
    opened = asyncio.Event()

    async def waits(_: Scope, __: Receive, send: Send) -> None:
        await opened.wait()
        await send({"type": "done"})

    load = Load()
    limits = Limits(waits, VirtualClock(), load)
    held = [asyncio.create_task(limits(scope(), nothing, Sent())) for _ in range(IN_FLIGHT_MAX)]
    await asyncio.sleep(0)
    assert load.in_flight == IN_FLIGHT_MAX
    sent = Sent()
    await limits(scope(), nothing, sent)
    head: dict[str, Any] = dict(sent.messages[0])
    assert head["status"] == 503
    assert (b"retry-after", b"1") in head["headers"]
    assert load.refused == 1
    opened.set()
    await limits(scope("/healthz"), nothing, sent)
    await asyncio.gather(*held)
    assert load.in_flight == 0
