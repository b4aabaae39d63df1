"""Watches over a Valkey Cluster: takes over shards that no majority is left to decide on, and spreads primaries again.

A cluster replaces a lost primary by itself as long as a majority of its primaries lives. When the zone is lost that
had most of them, the keeper makes a replica of each shard take over (`CLUSTER FAILOVER TAKEOVER`), once it is sure that
no acknowledged purchase can be missing from it: see `decide/copies.py`. There is one keeper.
"""

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from springtide.decide.copies import enough_fenced, handover, heir
from springtide.drivers.valkey_view import Address, Said, Server, Shard, logs_of, shards_of
from springtide.errors import EngineError
from springtide.ports import Clock

LOOK_S = 0.25
SILENT_S = 3.0
"""A primary that is not heard for this long is lost; the cluster's own `cluster-node-timeout` is 2 s."""

ALONE_S = 12.0
"""After this long a takeover is for the keeper also where a majority lives that should have decided, and has not."""

SPREAD_AFTER_S = 10.0
"""All must have been well for this long before a primary moves on purpose, and again before the next one does."""

FENCE_S = 2.0
TAKE_S = 3.0
LAG_BYTES_MAX = 1_000_000
"""A replica further behind is no good to hand over to."""

ASLEEP_S = 5.0
"""A keeper that did not look for this long was frozen itself: it starts to listen anew."""

_POLL_S = 0.05
_FENCED = "springtide-fenced:"
_log = structlog.get_logger(__name__)


class ValkeyKeeper:
    """The keeper of one cluster. `takeovers` and `handovers` count; `alarm` says what it cannot mend."""

    def __init__(
        self,
        zones: Mapping[Address, int],
        clock: Clock,
        *,
        replicas: int,
        acked: int,
        spread_after_s: float = SPREAD_AFTER_S,
    ) -> None:
        """`zones` has the zone of each server. A purchase is acknowledged with `acked` of a shard's `replicas`."""
        self.takeovers = 0
        self.handovers = 0
        self.alarm = ""
        self._zones = dict(zones)
        self._servers = {address: Server(address, clock) for address in zones}
        self._clock = clock
        self._replicas = replicas
        self._acked = acked
        self._spread_after_s = spread_after_s
        self._heard_s: dict[str, float] = {}
        self._looked_s = clock.monotonic_s()
        self._well_since_s: float | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except EngineError as error:
                    self._raise_alarm(str(error))
                except Exception as error:  # noqa: BLE001 - a keeper that ended would leave its store without one
                    _log.exception("keeper_failed")
                    self._raise_alarm(f"the keeper failed: {error!r}; see its log")
                self._looked_s = self._clock.monotonic_s()
                await self._clock.sleep(LOOK_S)
        finally:
            await asyncio.gather(*(server.close() for server in self._servers.values()))

    async def look(self) -> None:
        """Look once at all servers and do what is to be done. Raises EngineError when that fails."""
        said = await self._said()
        shards = shards_of(said.values())
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s > ASLEEP_S:
            self._heard_s.clear()
        self._looked_s = now_s
        living = []
        for shard in shards:
            name = shard.primary.node_id
            # One that follows somebody now is no primary, whatever others still believe.
            if name in said and not said[name].me.primary:
                living.append(shard)
                self._heard_s[name] = now_s
            self._heard_s.setdefault(name, now_s)
        lost = [shard for shard in shards if shard not in living]
        await self._unfence(said)
        if lost:
            self._well_since_s = None
            patience_s = SILENT_S if 2 * len(living) <= len(shards) else ALONE_S
            for shard in lost:
                if now_s - self._heard_s[shard.primary.node_id] >= patience_s:
                    await self._take_over(shard, said)
        elif self._well(shards, said):
            self.alarm = ""
            await self._spread(shards, said)
        else:
            self._well_since_s = None

    async def _said(self) -> dict[str, Said]:
        answers = await asyncio.gather(*(server.said() for server in self._servers.values()))
        return {said.node_id: said for said in answers if said is not None}

    async def _take_over(self, shard: Shard, said: Mapping[str, Said]) -> None:
        servers = {one.node_id: self._servers[one.address] for one in shard.replicas if one.node_id in said}
        done = await asyncio.gather(
            *(self._fence(server, said[name]) for name, server in servers.items()), return_exceptions=True
        )
        fenced = [name for name, error in zip(servers, done, strict=True) if error is None]
        now = await self._until_deaf([servers[name] for name in fenced])
        logs = {name: log for name, log in logs_of(shard.replicas, now).items() if name in fenced}
        if not enough_fenced(len(logs), self._replicas, self._acked):
            await self._unfence(now)
            self._raise_alarm(
                f"a shard of Valkey has lost its primary, and {len(logs)} of its {self._replicas} replicas answer: too "
                "few to be sure that they have every order. Bring back one of its servers, in any zone"
            )
            return
        successor = heir(logs)
        host, port = servers[successor].address
        _log.warning("valkey_takes_over", lost=shard.primary.address, successor=f"{host}:{port}", logs=logs)
        await servers[successor].do("CLUSTER", "FAILOVER", "TAKEOVER")
        self.takeovers += 1
        until_s = self._clock.monotonic_s() + TAKE_S
        while (one := await servers[successor].said()) is None or one.me.primary:
            if self._clock.monotonic_s() > until_s:
                raise EngineError(f"Valkey at {host}:{port} did not take over in {TAKE_S:g} s; look into its log")
            await self._clock.sleep(_POLL_S)
        await self._unfence(now)

    async def _fence(self, server: Server, said: Said) -> None:
        """Let a replica hear its primary no more: the secret that it shows him is wrong, and the line is cut."""
        if not said.secret.startswith(_FENCED):
            await server.do("CONFIG", "SET", "primaryauth", _FENCED + said.secret)
        await server.do("CLIENT", "KILL", "TYPE", "primary")

    async def _until_deaf(self, servers: Sequence[Server]) -> dict[str, Said]:
        """What these replicas say when none of them hears a primary any more, or after FENCE_S."""
        until_s = self._clock.monotonic_s() + FENCE_S
        while True:
            answers = await asyncio.gather(*(server.said() for server in servers))
            deaf = all(said is not None and not said.linked for said in answers)
            if deaf or self._clock.monotonic_s() > until_s:
                return {said.node_id: said for said in answers if said is not None}
            await self._clock.sleep(_POLL_S)

    async def _unfence(self, said: Mapping[str, Said]) -> None:
        """Let them listen again; also those that a keeper left so that died."""
        for one in said.values():
            if one.secret.startswith(_FENCED):
                await self._servers[one.me.address].do("CONFIG", "SET", "primaryauth", one.secret.removeprefix(_FENCED))

    def _well(self, shards: Sequence[Shard], said: Mapping[str, Said]) -> bool:
        """Whether every server answers, and every replica is close behind its primary."""
        return len(said) == len(self._servers) and all(
            len(shard.replicas) == self._replicas
            and all(
                said[one.node_id].linked and said[shard.primary.node_id].log - said[one.node_id].log < LAG_BYTES_MAX
                for one in shard.replicas
            )
            for shard in shards
        )

    async def _spread(self, shards: Sequence[Shard], said: Mapping[str, Said]) -> None:
        now_s = self._clock.monotonic_s()
        if self._well_since_s is None:
            self._well_since_s = now_s
        if now_s - self._well_since_s < self._spread_after_s:
            return
        copies = {
            at: {self._zones[one.address]: one for one in (shard.primary, *shard.replicas)}
            for at, shard in enumerate(shards)
        }
        primaries = {at: self._zones[shard.primary.address] for at, shard in enumerate(shards)}
        move = handover(primaries, {at: sorted(zones) for at, zones in copies.items()})
        if move is None:
            return
        shard, zone = move
        target = copies[shard][zone]
        _log.info("valkey_hands_over", from_=shards[shard].primary.address, to=target.address)
        self._well_since_s = now_s
        await self._servers[said[target.node_id].me.address].do("CLUSTER", "FAILOVER")
        self.handovers += 1

    def _raise_alarm(self, text: str) -> None:
        if text != self.alarm:
            _log.error("valkey_alarm", why=text)
        self.alarm = text
