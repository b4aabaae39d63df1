"""A sweep acts on what it found: strays only, in batches, through failures, and it writes each outcome down once."""

import json
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from springtide.cli.sweep import BATCH, LOG_BYTES_MAX, Sweeper, as_json, sweep_policy
from springtide.config import parse
from springtide.decide.strays import Claims, Leaders, SweepPolicy
from springtide.drivers.memory.clock import VirtualClock
from springtide.drivers.memory.fleet import MemoryCloud
from springtide.errors import CloudUnavailable
from springtide.model import NodeOrder, Zone, ZoneKind

H_MS = 3_600_000
ZONE = Zone("h", ZoneKind.CLOUD, nodes_max=500, cores_per_node=8, lead_ms=1_000, price_fen_per_node_h=360)
POLICY = SweepPolicy(grace_ms=60_000, release_after_ms=H_MS)


class PickyCloud(MemoryCloud):
    """Refuses a batch with a certain node, and keeps what it was asked."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(clock, [ZONE])
        self.batches: list[int] = []
        self.stuck = ""

    @override
    async def release(self, node_ids: Sequence[str]) -> None:
        self.batches.append(len(node_ids))
        if self.stuck in node_ids:
            raise CloudUnavailable("no answer; repeat it")
        await super().release(node_ids)


class Setting:
    """A cloud with nodes of one order, and what is known of the leaders."""

    def __init__(self, log: Path | None = None) -> None:
        self.clock = VirtualClock()
        self.cloud = PickyCloud(self.clock)
        self.claims = Claims(Leaders.DEAD)
        self.sweeper = Sweeper(self.clock, self.cloud, self._claims, POLICY, log)

    async def _claims(self) -> Claims:
        return self.claims

    async def rent(self, count: int, token: str = "t1") -> list[str]:
        return [node.node_id for node in await self.cloud.rent(NodeOrder("h", count, token))]


async def test_it_names_strays_and_releases_them_only_when_told_to() -> None:
    at = Setting()
    await at.rent(2)
    assert not (await at.sweeper.sweep(release=True)).strays
    await at.clock.advance(H_MS / 1000 + 61)
    named = await at.sweeper.sweep(release=False)
    assert (len(named.strays), named.left, named.released) == (2, 2, ())
    assert len(await at.cloud.nodes()) == 2
    done = await at.sweeper.sweep(release=True)
    assert (len(done.released), done.left) == (2, 0)
    assert await at.cloud.nodes() == []
    said = as_json(done)
    assert (said["leaders"], said["nodes"], said["left"]) == (Leaders.DEAD, 2, 0)


async def test_a_batch_that_fails_does_not_keep_the_others_and_is_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "sweep.jsonl"
    at = Setting(log)
    names = await at.rent(2 * BATCH + 1)
    at.cloud.stuck = names[0]
    await at.clock.advance(H_MS / 1000 + 61)
    done = await at.sweeper.sweep(release=True)
    assert at.cloud.batches == [BATCH, BATCH, 1]
    assert (len(done.released), done.left, len(done.errors)) == (BATCH + 1, BATCH, BATCH)
    await at.sweeper.sweep(release=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # The same failure again is no news.
    assert len(lines) == 2 * BATCH + 1
    at.cloud.stuck = ""
    assert (await at.sweeper.sweep(release=True)).left == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    outcomes = [one["outcome"] for one in lines if one["node_id"] == names[0]]
    assert outcomes == ["no answer; repeat it", "released"]


async def test_what_a_leader_claims_between_list_and_judgement_stays() -> None:
    at = Setting()
    names = await at.rent(3)
    await at.clock.advance(H_MS / 1000 + 61)
    at.claims = Claims(Leaders.RUNNING, node_ids=frozenset(names[:2]), heard_ms=at.clock.now_ms())
    done = await at.sweeper.sweep(release=True)
    assert done.released == (names[2],)
    assert [node.node_id for node in await at.cloud.nodes()] == names[:2]


async def test_a_log_that_cannot_be_written_stops_nothing_and_one_that_is_long_begins_anew(tmp_path: Path) -> None:
    at = Setting(tmp_path / "none" / "sweep.jsonl")
    await at.rent(1)
    await at.clock.advance(H_MS / 1000 + 61)
    assert (await at.sweeper.sweep(release=True)).left == 0
    log = tmp_path / "sweep.jsonl"
    log.write_bytes(b"x" * (LOG_BYTES_MAX + 1))
    at = Setting(log)
    await at.rent(1)
    await at.clock.advance(H_MS / 1000 + 61)
    await at.sweeper.sweep(release=True)
    assert len(log.read_text().splitlines()) == 1
    assert (tmp_path / "sweep.1.jsonl").stat().st_size > LOG_BYTES_MAX


def test_the_policy_is_the_configurations_and_waits_for_announced_events() -> None:
    config = parse(
        {
            "zones": [{"name": "a", "kind": "idc", "nodes_max": 1, "cores_per_node": 4}],
            "services": [{"name": "web", "port": 8080, "requests_per_s": 50.0, "command": "true"}],
            "calendar": [
                {"service": "web", "at": "2026-11-11T20:00:00+08:00", "lasts_s": 600.0, "peak_requests_per_s": 9.0}
            ],
            "cloud": {"sweep_grace_s": 90.0, "release_after_h": 2.0},
        },
        "springtide.toml",
        {},
    )
    policy = sweep_policy(config, older_than_h=0.5)
    assert (policy.grace_ms, policy.release_after_ms, policy.older_than_ms) == (90_000, 2 * H_MS, H_MS // 2)
    assert policy.events_end_ms == 1_794_398_400_000 + 600_000
