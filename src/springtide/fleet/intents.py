"""Actions written down before they are begun, so that a leader who comes after a crash can end them.

Only what cannot be seen again is sent again: a purchase, word for word and with its token, which the cloud takes once.
A replica that was started is listed by its runtime, a node that was released no longer by the cloud; what was begun of
these and is not seen is decided again.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from springtide.errors import Deposed, FleetStateError
from springtide.model import Action, Intent, Node, ReleaseNode, RentNodes, StartReplica
from springtide.ports import Clock, FleetState

WRITTEN = (RentNodes, StartReplica, ReleaseNode)
"""The actions that are written down first."""

NEEDS_INTENT = (RentNodes, ReleaseNode)
"""Those that are not begun when they cannot be written down: money is spent, or a machine is gone."""

_ACTION: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)


class Deed(msgspec.Struct, frozen=True):
    """An action that is to be begun for a service; `intent_id` is empty while it is not written down."""

    service: str
    action: Action
    tick: int
    intent_id: str = ""


class Intents:
    """The writes of one leader; what could not be struck is struck later."""

    def __init__(self, clock: Clock, state: FleetState) -> None:
        """Nothing has been begun."""
        self._clock = clock
        self._state = state
        self._ended: list[str] = []

    async def begin(self, term: int, deeds: Sequence[Deed], timeout_s: float) -> list[Deed]:
        """Write down what has to be, in one call; the deeds with their ids, in their order.

        Raises Deposed, and FleetStateError when that cannot be known: it may be there, and is found as open later.
        """
        named = [
            msgspec.structs.replace(deed, intent_id=f"{term}-{deed.tick}-{number}")
            if isinstance(deed.action, WRITTEN)
            else deed
            for number, deed in enumerate(deeds)
        ]
        now_ms = self._clock.now_ms()
        intents = [
            Intent(deed.intent_id, term, deed.service, msgspec.json.encode(deed.action).decode(), now_ms)
            for deed in named
            if deed.intent_id
        ]
        if intents:
            try:
                async with self._clock.timeout(timeout_s):
                    await self._state.begin(term, intents)
            except Exception:
                self.done(*(intent.intent_id for intent in intents))
                raise
        return named

    def done(self, *intent_ids: str) -> None:
        """These have ended, however; `strike` tells the store."""
        self._ended.extend(intent_ids)

    async def strike(self, term: int, timeout_s: float) -> None:
        """Strike what has ended, in one call. What fails is tried again the next time. Raises FleetStateError."""
        ended = list(self._ended)
        if not ended:
            return
        try:
            async with self._clock.timeout(timeout_s):
                await self._state.end(term, ended)
        except Deposed:
            self._ended.clear()  # the next leader finds them open, and ends them
            raise
        del self._ended[: len(ended)]

    async def sweep(self, active: Sequence[str]) -> None:
        """Note as ended what is open though nobody carries it out. Raises FleetStateError."""
        known = {*active, *self._ended}
        self.done(*(one.intent_id for one in await self._state.open_intents() if one.intent_id not in known))

    async def left_open(self, active: Sequence[str], nodes: Sequence[Node]) -> list[Deed]:
        """For a new leader: the purchases to send again. Everything else that is open is noted as ended.

        `active` are those that this process still carries out; `nodes` are those listed now, among which a purchase
        that has been delivered is found by its token.
        """
        delivered = Counter(node.client_token for node in nodes)
        again: list[Deed] = []
        for intent in await self._state.open_intents():
            if intent.intent_id in active:
                continue
            try:
                action = _ACTION.decode(intent.action)
            except msgspec.DecodeError as error:
                raise FleetStateError(
                    f"intent {intent.intent_id} cannot be read ({error}); let the version that wrote it lead first"
                ) from error
            if isinstance(action, RentNodes) and delivered[action.client_token] < action.count:
                again.append(Deed(intent.service, action, 0, intent.intent_id))
            else:
                self._ended.append(intent.intent_id)
        return again
