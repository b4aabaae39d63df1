"""`[inventory] copies = 3`: embedded stores in three zones, on data that stays."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from springtide.cli.store_copies import check_copies
from springtide.cli.stores import Given, Places, start_stores
from springtide.config import InventorySettings
from springtide.drivers.system import SystemClock
from springtide.errors import UserError
from springtide.model import ReserveRequest, ReserveStatus
from tests.integration.order_path import small_sale

CLOCK = SystemClock()
THREE = InventorySettings(copies=3, disk_reserve_mb=16)


async def test_a_sale_in_three_copies_is_there_again_and_no_other_number_of_copies_is_taken(short_dir: Path) -> None:
    places, sale = Places(short_dir / "valkey", short_dir / "pg"), small_sale()
    places.valkey_folder.mkdir()
    request = ReserveRequest("ada", "k", "tea", 1, "o1", sale.epoch, CLOCK.now_ms() + 60_000)
    async with AsyncExitStack() as stack:
        stores = await start_stores(stack, CLOCK, Given(), places, THREE)
        assert (stores.address.count(","), stores.ledger_dsn.count("zone-"), stores.replicas_acked) == (8, 3, 1)
        await stores.ledger.publish(sale)
        await stores.inventory.publish(sale)
        [result] = await stores.inventory.reserve(sale.sale, 0, [request])
        assert result.status is ReserveStatus.RESERVED

    async with AsyncExitStack() as stack:
        stores = await start_stores(stack, CLOCK, Given(), places, THREE)
        [result] = await stores.inventory.reserve(sale.sale, 0, [request])
        assert (result.status, result.order_id) == (ReserveStatus.REPEATED, "o1")
        record = await stores.ledger.sale_record(sale.sale)
        assert record is not None

    async with AsyncExitStack() as stack:
        with pytest.raises(UserError, match="another number of copies"):
            await start_stores(stack, CLOCK, Given(), places, msgspec.structs.replace(THREE, copies=1))


def test_copies_that_could_never_take_over_and_data_of_a_single_store_are_refused(tmp_path: Path) -> None:
    for acked in (0, 3):
        with pytest.raises(UserError, match="must be 1 to 2"):
            check_copies(msgspec.structs.replace(THREE, replicas_acked=acked), tmp_path, None)
    check_copies(THREE, tmp_path, tmp_path)
    (tmp_path / "appendonlydir").mkdir()
    with pytest.raises(UserError, match="appendonlydir is of stores with another number"):
        check_copies(THREE, tmp_path, None)
