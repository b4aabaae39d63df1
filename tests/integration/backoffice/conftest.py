"""One pair of engines for all tests of the back office, and clients with a key of each role."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.integration.backoffice.office import Clients, clients_of
from tests.integration.order_path import Engines, World, empty_world, started_engines


@pytest.fixture(scope="package")
def engines() -> Iterator[Engines]:
    with started_engines() as engines:
        yield engines


@pytest.fixture
async def world(engines: Engines) -> AsyncIterator[World]:
    async with empty_world(engines) as world:
        yield world


@pytest.fixture
async def clients(world: World) -> AsyncIterator[Clients]:
    async with clients_of(world) as clients:
        yield clients
