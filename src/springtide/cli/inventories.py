"""The inventory by its address: one Valkey, or a cluster of them."""

from functools import partial

from springtide.drivers.inventory_limits import JOURNAL_LAG_MAX
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_cluster import ClusterStore
from springtide.drivers.valkey_library import prepare
from springtide.drivers.valkey_room import ValkeyRoom, load_room_functions
from springtide.errors import UserError

PORT_MAX = 65_535
CLUSTER_TIMEOUT_S = 5.0
"""How long a call may wait for its answer: longer than a failover, which takes two to four seconds."""


def parse_addresses(text: str) -> tuple[tuple[str, int], ...]:
    """`HOST:PORT`, or several of a cluster with commas between them. Raises UserError."""
    found = []
    for one in text.split(","):
        host, _, port = one.strip().rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) <= PORT_MAX:
            raise UserError(f"--inventory {text}: not an address; write HOST:PORT, for example 127.0.0.1:6379")
        found.append((host, int(port)))
    return tuple(found)


async def open_inventory(
    addresses: str,
    clock: SystemClock,
    *,
    replicas_acked: int = 0,
    journal_lag_max: int = JOURNAL_LAG_MAX,
    library: bytes | None = None,
) -> ValkeyInventory:
    """Connect to the one Valkey, or, where several are named, to the cluster they are of.

    `replicas_acked` is how many replicas must have an acknowledged order on disk, in a cluster. Raises UserError and
    InventoryUnavailable.
    """
    nodes = parse_addresses(addresses)
    if len(nodes) == 1:
        return await ValkeyInventory.connect(*nodes[0], clock, journal_lag_max=journal_lag_max, library=library)
    store = await ClusterStore.connect(
        nodes, clock, partial(prepare, library=library), replicas_acked=replicas_acked, timeout_s=CLUSTER_TIMEOUT_S
    )
    return ValkeyInventory.on(store, journal_lag_max=journal_lag_max)


async def open_rooms(addresses: str, clock: SystemClock) -> ValkeyRoom:
    """The waiting rooms of the same servers; a place in a line is not waited for on replicas."""
    nodes = parse_addresses(addresses)
    if len(nodes) == 1:
        return await ValkeyRoom.connect(*nodes[0], clock)
    store = await ClusterStore.connect(nodes, clock, load_room_functions, replicas_acked=0, timeout_s=CLUSTER_TIMEOUT_S)
    return ValkeyRoom(store)
