"""The inventory in both its makes, each with a Valkey of the test file's own."""

from collections.abc import AsyncIterator, Iterator

import pytest

from springtide.drivers.embedded_valkey import EmbeddedValkey
from springtide.ports import Inventory
from tests.contract.inventories import Make, inventories, started_server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedValkey]:
    with started_server() as server:
        yield server


@pytest.fixture(params=["valkey", "memory"])
async def make(request: pytest.FixtureRequest, server: EmbeddedValkey) -> AsyncIterator[Make]:
    async with inventories(request.param, server) as make:
        yield make


@pytest.fixture
async def inventory(make: Make) -> Inventory:
    return await make()
