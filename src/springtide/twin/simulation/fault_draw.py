"""A scenario made harder by a seed: faults of every kind at random moments, and less room in the world for them.

The same seed of the same scenario is the same schedule. All faults are over by FAULTS_UNTIL of the time, so that what
they leave behind is seen.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from springtide.drivers.system import chance as chance_of
from springtide.model import ZoneKind
from springtide.ports import Chance
from springtide.twin.simulation.cloud import offers
from springtide.twin.simulation.faults import Fault, FaultKind
from springtide.twin.simulation.flow import PathSettings
from springtide.twin.simulation.scenario import PolicySettings, Scenario, SimQuota

T = TypeVar("T")

FAULTS_MAX = 8
"""Faults of one seed, beside the scenario's own."""

FAULTS_UNTIL = 0.7
"""The part of the time by which every drawn fault is over."""

LASTS_S = (5.0, 600.0)
"""How long a fault lasts; a short one is as likely as a long one (the logarithm is uniform)."""


APIS = ("", "RunInstances", "DeleteInstances", "ModifyInstanceAutoReleaseTime", "CreateContainerGroup")
"""What can be throttled; "" is all of them."""


def draw(scenario: Scenario, seed: int) -> Scenario:
    """The scenario as this seed makes it: its faults, and up to FAULTS_MAX more."""
    chance = chance_of(zlib.crc32(f"{seed}/faults".encode()))
    kinds = [kind for kind in FaultKind if _possible(kind, scenario)]
    count = _pick(range(1, FAULTS_MAX + 1), chance)
    faults = [_fault(_pick(kinds, chance), scenario, chance) for _ in range(count)]
    faults.sort(key=lambda fault: fault.at_s)
    return msgspec.structs.replace(
        scenario,
        seed=seed,
        calendar=scenario.calendar and chance.random() < 0.8,  # noqa: PLR2004 - one sale in five is a surprise
        faults=(*scenario.faults, *faults),
        path=_path(scenario.path, chance),
        policy=_policy(scenario.policy, chance),
        cloud=msgspec.structs.replace(scenario.cloud, quotas=_quotas(scenario, chance)),
        fleet=msgspec.structs.replace(scenario.fleet, failure_budget=_pick((0, 1), chance)),
    )


def _pick(some: Sequence[T], chance: Chance) -> T:
    """One of them, each as likely."""
    return some[int(chance.random() * len(some))]


def _possible(kind: FaultKind, scenario: Scenario) -> bool:
    """Whether the scenario has what the fault is about."""
    match kind:
        case FaultKind.LINE_CUT | FaultKind.LINE_SLOW:
            return bool(scenario.lines)
        case FaultKind.LARGER_SALE:
            return bool(scenario.demand.waves)
        case FaultKind.ZONE_LOST:
            return len(scenario.zones) > 1
        case FaultKind.STOCK_OUT | FaultKind.API_THROTTLED | FaultKind.SLOW_BOOTS | FaultKind.SPOT_RECLAIM:
            return any(zone.kind is ZoneKind.CLOUD for zone in scenario.zones)
        case _:
            return True


def _fault(kind: FaultKind, scenario: Scenario, chance: Chance) -> Fault:
    until_s = scenario.duration_s * FAULTS_UNTIL
    lasts_s = min(until_s / 2, LASTS_S[0] * (LASTS_S[1] / LASTS_S[0]) ** chance.random())
    lasts_s = 0.0 if kind is FaultKind.SPOT_RECLAIM else float(round(lasts_s))
    at_s = float(round(chance.uniform(0.0, until_s - lasts_s)))
    return Fault(kind, at_s, lasts_s, _TARGETS[kind](scenario, chance), _amount(kind, scenario, chance))


def _any_zone(scenario: Scenario, chance: Chance) -> str:
    return _pick(scenario.zones, chance).name


def _cloud_zone_or_all(scenario: Scenario, chance: Chance) -> str:
    cloud = [zone.name for zone in scenario.zones if zone.kind is ZoneKind.CLOUD]
    return _pick(["", *cloud], chance)


def _zone_or_all(scenario: Scenario, chance: Chance) -> str:
    return "" if chance.random() < 0.5 else _any_zone(scenario, chance)  # noqa: PLR2004 - as likely as not


def _line(scenario: Scenario, chance: Chance) -> str:
    return _pick(scenario.lines, chance).name


def _offer(scenario: Scenario, chance: Chance) -> str:
    """All offers, those of a zone, or a single one."""
    key = _pick([offer.key for offer in offers(scenario)] or [""], chance)
    return _pick(("", f"{key.partition('/')[0]}/", key), chance)


def _api(_: Scenario, chance: Chance) -> str:
    return _pick(APIS, chance)


def _wave(scenario: Scenario, chance: Chance) -> str:
    return _pick(scenario.demand.waves, chance).name


def _nothing(_: Scenario, __: Chance) -> str:
    return ""


_TARGETS: Mapping[FaultKind, Callable[[Scenario, Chance], str]] = {
    FaultKind.ZONE_LOST: _any_zone,
    FaultKind.LINE_CUT: _line,
    FaultKind.LINE_SLOW: _line,
    FaultKind.STOCK_OUT: _offer,
    FaultKind.API_THROTTLED: _api,
    FaultKind.SLOW_BOOTS: _nothing,
    FaultKind.SPOT_RECLAIM: _cloud_zone_or_all,
    FaultKind.REGISTRY_GONE: _zone_or_all,
    FaultKind.VALKEY_FAILOVER: _nothing,
    FaultKind.LARGER_SALE: _wave,
    FaultKind.RUSH: _nothing,
}


def _amount(kind: FaultKind, scenario: Scenario, chance: Chance) -> float:
    """How bad it is; see FaultKind."""
    match kind:
        case FaultKind.STOCK_OUT:
            return float(_pick(range(4), chance))
        case FaultKind.VALKEY_FAILOVER:
            return float(_pick(range(1, scenario.path.shards + 1), chance))
        case FaultKind.RUSH:
            peak = max((wave.peak_per_s for wave in scenario.demand.waves), default=scenario.demand.base_per_s)
            return float(round(peak * chance.uniform(0.1, 3.0)))
        case _:
            return round(chance.uniform(*AMOUNTS.get(kind, (1.0, 1.0))), 2)


AMOUNTS: Mapping[FaultKind, tuple[float, float]] = {
    FaultKind.LINE_SLOW: (0.05, 1.0),
    FaultKind.SPOT_RECLAIM: (0.05, 1.0),
    FaultKind.SLOW_BOOTS: (1.5, 10.0),
    FaultKind.LARGER_SALE: (0.0, 10.0),
}
"""The least and the most of an amount that no scenario changes."""


def _path(path: PathSettings, chance: Chance) -> PathSettings:
    """A stock from next to nothing to more than is asked for; now and then a recorder that is far too slow."""
    slow = chance.random() < 0.2  # noqa: PLR2004 - one in five
    return msgspec.structs.replace(
        path,
        stock=max(1, round(path.stock * 10 ** chance.uniform(-4.0, 0.5))),
        recorder_per_s=path.recorder_per_s * (0.1 if slow else 1.0),
        pay_share=round(chance.random(), 2),
        bots_share=0.3 if path.bot_buyers and chance.random() < 0.5 else path.bots_share,  # noqa: PLR2004 - as likely as not
    )


def _policy(policy: PolicySettings, chance: Chance) -> PolicySettings:
    """Tighter limits, now and then."""
    return msgspec.structs.replace(
        policy,
        event_doubt=round(chance.uniform(0.0, 0.5), 2),
        spend_max_cny_per_h=round(policy.spend_max_cny_per_h * chance.uniform(0.05, 1.0), 2),
        zone_share_max=round(chance.uniform(min(0.5, policy.zone_share_max), 1.0), 2),
        spot_share_max=round(chance.random(), 2),
    )


def _quotas(scenario: Scenario, chance: Chance) -> tuple[SimQuota, ...]:
    """As they are, or a part of that."""
    return tuple(
        msgspec.structs.replace(quota, cores=round(quota.cores * min(1.0, chance.uniform(0.2, 2.0))))
        for quota in scenario.cloud.quotas
    )
