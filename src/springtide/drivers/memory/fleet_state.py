"""`ports.FleetState` in memory, with PostgreSQL's semantics: for one process, the twin and tests."""

from collections.abc import Iterable, Sequence

import msgspec

from springtide.errors import Deposed, FleetStateError
from springtide.model import Intent, Leadership, Purchase, ScaleOverride, ServiceWish, Wishes, ZoneMode
from springtide.ports import Clock

MEMORY_BYTES_MAX = 1_000_000
"""The longest value that is remembered."""

NAME_LETTERS_MAX = 200


class MemoryFleetState:
    """What control loops of one process share. Nothing awaits inside a method, so each is one atomic step."""

    def __init__(self, clock: Clock) -> None:
        """Nobody leads, nothing is wished."""
        self._clock = clock
        self._lead = Leadership("", 0, 0)
        self._intents: dict[str, Intent] = {}
        self._version = 0
        self._wishes: dict[tuple[str, str], str] = {}
        self._memory: dict[str, bytes] = {}
        self.failing = False
        """Set it to make every call fail."""

    async def lead(self, holder: str, lease_ms: int) -> Leadership:
        """See the port."""
        self._answer()
        now_ms = self._clock.now_ms()
        if self._lead.holder == holder or self._lead.until_ms <= now_ms:
            term = self._lead.term + (self._lead.holder != holder)
            self._lead = Leadership(holder, term, now_ms + lease_ms)
        return self._lead

    async def resign(self, holder: str, term: int) -> None:
        """See the port."""
        self._answer()
        if (self._lead.holder, self._lead.term) == (holder, term):
            self._lead = Leadership("", term, 0)

    async def begin(self, term: int, intents: Sequence[Intent]) -> None:
        """See the port."""
        self._answer(term)
        for one in intents:
            self._intents.setdefault(one.intent_id, msgspec.structs.replace(one, term=term))

    async def end(self, term: int, intent_ids: Sequence[str]) -> None:
        """See the port."""
        self._answer(term)
        for name in intent_ids:
            self._intents.pop(name, None)

    async def open_intents(self) -> list[Intent]:
        """See the port."""
        self._answer()
        return list(self._intents.values())

    async def wishes(self) -> Wishes:
        """See the port."""
        self._answer()
        return wishes_of(((kind, name, value) for (kind, name), value in self._wishes.items()), self._version)

    async def wish_service(self, name: str, wish: ServiceWish | None) -> None:
        """See the port."""
        self._answer()
        self._put("service", name, changed(self._wishes.get(("service", name)), wish))

    async def wish_mode(self, zone: str, mode: ZoneMode) -> None:
        """See the port."""
        self._answer()
        self._put("mode", zone, msgspec.json.encode(mode).decode())

    async def wish_node(self, node_id: str, *, cordoned: bool) -> None:
        """See the port."""
        self._answer()
        self._put("node", node_id, "true" if cordoned else None)

    async def wish_purchases(self, event: str, purchases: Sequence[Purchase] | None) -> None:
        """See the port."""
        self._answer()
        self._put("plan", event, None if purchases is None else msgspec.json.encode(purchases).decode())

    async def wish_scale(self, service: str, scale: ScaleOverride | None) -> None:
        """See the port."""
        self._answer()
        self._put("scale", service, msgspec.json.encode(scale).decode() if scale else None)

    async def remember(self, term: int, name: str, value: bytes) -> None:
        """See the port."""
        require_memory(name, value)
        self._answer(term)
        self._memory[name] = bytes(value)

    async def recall(self, name: str) -> bytes | None:
        """See the port."""
        self._answer()
        return self._memory.get(name)

    async def close(self) -> None:
        """See the port: there is no connection."""

    def _put(self, kind: str, name: str, value: str | None) -> None:
        self._version += 1
        if value is None:
            self._wishes.pop((kind, name), None)
        else:
            self._wishes[kind, name] = value

    def _answer(self, term: int | None = None) -> None:
        if self.failing:
            raise FleetStateError("the fleet's state does not answer; repeat the call")
        if term is not None and term != self._lead.term:
            raise Deposed(f"term {term} is over: another control loop leads; stop acting, nothing was written")


def changed(before: str | None, wish: ServiceWish | None) -> str | None:
    """A service's new wish as its JSON: with the revision that it had as `previous`, if it is another one."""
    if wish is None:
        return None
    if before is not None:
        known = msgspec.json.decode(before, type=ServiceWish)
        same = known.spec.revision == wish.spec.revision
        wish = msgspec.structs.replace(wish, previous=known.previous if same else known.spec)
    return msgspec.json.encode(wish).decode()


def wishes_of(rows: Iterable[tuple[str, str, str]], version: int = 0) -> Wishes:
    """Wishes from rows of (kind, name, JSON). Raises FleetStateError when a newer version wrote them."""
    services: dict[str, ServiceWish] = {}
    modes: dict[str, ZoneMode] = {}
    scales: dict[str, ScaleOverride] = {}
    cordoned: set[str] = set()
    purchases: dict[str, tuple[Purchase, ...]] = {}
    name = ""
    try:
        for kind, name, value in sorted(rows):
            match kind:
                case "version":
                    version = int(value)
                case "service":
                    services[name] = msgspec.json.decode(value, type=ServiceWish)
                case "mode":
                    modes[name] = msgspec.json.decode(value, type=ZoneMode)
                case "scale":
                    scales[name] = msgspec.json.decode(value, type=ScaleOverride)
                case "node":
                    cordoned.add(name)
                case "plan":
                    purchases[name] = msgspec.json.decode(value, type=tuple[Purchase, ...])
    except msgspec.DecodeError as error:
        raise FleetStateError(f"the wish for {name} cannot be read ({error}); use the version that wrote it") from error
    return Wishes(version, services, modes, scales, frozenset(cordoned), purchases)


def require_memory(name: str, value: bytes) -> None:
    """Raise FleetStateError for a value or a name that is too long."""
    if len(value) > MEMORY_BYTES_MAX or not 0 < len(name) <= NAME_LETTERS_MAX:
        raise FleetStateError(
            f"{name!r} with {len(value)} bytes is not remembered: give a name of 1 to {NAME_LETTERS_MAX} letters "
            f"and at most {MEMORY_BYTES_MAX} bytes"
        )
