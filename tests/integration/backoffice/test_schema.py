"""Whatever the back office is sent, it answers as its OpenAPI document says, and never with a 5xx (Schemathesis)."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from springtide.drivers.system import SystemIds
from springtide.model import Role
from springtide.sale.api_keys import make_key
from tests.integration.backoffice.office import office_app
from tests.integration.order_path import CLOCK, Engines, empty_world, now_ms, small_sale

EXAMPLES = 4
PHASES = [Phase.generate]  # the first failure as it is: making it small takes hundreds of requests
KNOWN = {"sale": "live", "sku": "tea"}


@dataclass
class Server:
    """A back office on loopback, in a loop of its own: connections to engines belong to one loop."""

    url: str
    secret: str


@contextmanager
def served(engines: Engines) -> Iterator[Server]:
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()
    found: list[Server] = []

    async def serving() -> None:
        async with empty_world(engines) as world:
            new = make_key(SystemIds(), "schema", Role.OWNER, now_ms())
            await world.ledger.add_api_key(new.key)
            await world.ledger.publish(small_sale())
            web = uvicorn.Server(uvicorn.Config(office_app(world), port=0, log_level="error", access_log=False))
            running = asyncio.create_task(web.serve())
            while not web.started:
                await CLOCK.sleep(0.01)
            found.append(Server(f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}", new.secret))
            ready.set()
            await stopping.wait()
            web.should_exit = True
            await running

    thread = threading.Thread(target=loop.run_until_complete, args=(serving(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def server(engines: Engines) -> Iterator[Server]:
    with served(engines) as server:
        yield server


def test_every_answer_is_as_described(server: Server) -> None:
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) > 25
    for operation in operations:

        @given(case=operation.as_strategy(), known=booleans())
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), phases=PHASES)
        def check(case: Case[Any], *, known: bool) -> None:
            if known:
                case.path_parameters.update({name: KNOWN[name] for name in case.path_parameters.keys() & KNOWN.keys()})
            # A schema cannot say that a sale closes after it opens, or which revision it is at: that is refused.
            case.call_and_validate(
                headers={"Authorization": f"Bearer {server.secret}"}, excluded_checks=[positive_data_acceptance]
            )

        check()
