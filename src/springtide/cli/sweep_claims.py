"""Who may want the rented nodes of an installation: asked of the platform's folder, and of the leader's memory."""

import msgspec

from springtide.cli.platform_folder import PlatformFolder
from springtide.decide.strays import Claims, Leaders
from springtide.drivers.postgres_fleet import PostgresFleetState
from springtide.drivers.system import SystemClock
from springtide.errors import LedgerError, SpringtideError
from springtide.fleet.cloud_status import read_cloud
from springtide.fleet.status import read_status
from springtide.model import Action, RentNodes
from springtide.ports import FleetState

ANSWER_S = 10.0
"""How long the fleet's state may take; without an answer nothing is known, and nothing is released."""

FRESH_MS = 30_000
"""A leader that has said nothing for longer does not run. It speaks every second; a lease is at most 60 s long."""

_ACTION: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)


async def claims_of(folder: PlatformFolder, installation: str, clock: SystemClock) -> Claims:
    """What is known now. Without a platform of this installation in the folder nobody is known to want anything."""
    settings, running = folder.settings(), folder.running()
    if settings is None:
        return Claims(Leaders.GONE, gone_ms=_forgotten_ms(folder))
    if settings.config.cloud.installation != installation:
        return Claims(Leaders.UNKNOWN)
    dsn = running.dsn if running is not None else settings.ledger
    if not dsn:
        return Claims(Leaders.DEAD)  # its state was an engine of its own, which has ended with it
    try:
        async with clock.timeout(ANSWER_S):
            state = await PostgresFleetState.connect(dsn, clock)
            try:
                return await claims_in(state, clock.now_ms())
            finally:
                await state.close()
    except (TimeoutError, SpringtideError, LedgerError, OSError):
        return Claims(Leaders.UNKNOWN)


async def claims_in(state: FleetState, now_ms: int) -> Claims:
    """The leader's words: the nodes that it lists, and what it is buying. Raises FleetStateError."""
    status = await read_status(state)
    cloud = await read_cloud(state)
    listed = cloud.nodes if cloud is not None else ()
    buying = [_ACTION.decode(intent.action) for intent in await state.open_intents()]
    runs = status is not None and now_ms - status.at_ms <= FRESH_MS
    return Claims(
        Leaders.RUNNING if runs else Leaders.DEAD,
        node_ids=frozenset(node.node_id for node in listed),
        tokens=frozenset(
            (
                *(node.client_token for node in listed if node.client_token),
                *(action.client_token for action in buying if isinstance(action, RentNodes)),
            )
        ),
        heard_ms=cloud.at_ms if cloud is not None else 0,
    )


def _forgotten_ms(folder: PlatformFolder) -> int:
    """Since when the folder has no settings of a platform: the last change of where they were; 0: it never had any."""
    try:
        return round(folder.running_file.parent.stat().st_mtime * 1000)
    except OSError:
        return 0
