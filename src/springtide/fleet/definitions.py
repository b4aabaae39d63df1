"""Revisions made known to the runtimes, each to each, before a replica of it is started there."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence

from springtide.errors import SpringtideError
from springtide.fleet.desk import Desk
from springtide.model import ServiceSpec
from springtide.ports import Clock, Runtime


class DefinitionBook:
    """What each runtime has been told since this loop began to lead."""

    def __init__(
        self, clock: Clock, runtimes: Sequence[tuple[Runtime, list[str]]], report: Callable[[str, str], None]
    ) -> None:
        """`runtimes` with their zones; `report` is told the source and the error of each failure."""
        self._clock = clock
        self._runtimes = runtimes
        self._report = report
        self._known: list[set[tuple[str, str]]] = [set() for _ in runtimes]
        self._number = {zone: number for number, (_, zones) in enumerate(runtimes) for zone in zones}

    def forget(self) -> None:
        """Tell everything again: another loop may have led since, and runtimes may be new."""
        for known in self._known:
            known.clear()

    def has(self, zone: str, service: str, revision: str) -> bool:
        """Whether the zone's runtime knows this revision."""
        number = self._number.get(zone)
        return number is not None and (service, revision) in self._known[number]

    async def define(self, desks: Iterable[Desk], silent: Collection[str], timeout_s: float) -> None:
        """Tell every runtime what it does not know yet. What fails is reported, and told at the next tick.

        Zones that are `silent` are not told: nothing is started there, and a tick must not wait for them.
        """
        specs = [spec for desk in desks for spec in desk.startable()]
        wanted = {(spec.name, spec.revision) for spec in specs}
        self._known = [known & wanted for known in self._known]
        missing = [
            self._tell(number, spec, timeout_s)
            for number, (_, zones) in enumerate(self._runtimes)
            if zones[0] not in silent
            for spec in specs
            if (spec.name, spec.revision) not in self._known[number]
        ]
        if missing:
            await asyncio.gather(*missing)

    async def _tell(self, number: int, spec: ServiceSpec, timeout_s: float) -> None:
        runtime, zones = self._runtimes[number]
        source = f"define {spec.name} in {zones[0]}"
        try:
            async with self._clock.timeout(timeout_s):
                await runtime.define(spec)
        except TimeoutError:
            return self._report(source, f"no answer within {timeout_s:g} s")
        except (SpringtideError, OSError) as error:
            return self._report(source, str(error))
        except Exception as error:  # noqa: BLE001 - a fault in a driver must not end the loop that replaces capacity
            return self._report(source, f"{type(error).__name__}: {error}")
        self._known[number].add((spec.name, spec.revision))
        return None
