"""The dedicated lines of a simulation: what requests and images take of them, and what is left while one is cut."""

from collections.abc import Mapping, Sequence

from springtide.twin.simulation.scenario import SimLine, SimZone

_MB_PER_GBIT = 125.0


class Lines:
    """Bandwidth between the data centre and the zones. Traffic of a zone spreads over its lines by their bandwidth."""

    def __init__(self, lines: Sequence[SimLine], zones: Sequence[SimZone]) -> None:
        """All of them whole."""
        self._lines = {line.name: line for line in lines}
        self._of = {zone.name: zone.lines for zone in zones}
        self._left = dict.fromkeys(self._lines, 1.0)
        self.load: dict[str, float] = dict.fromkeys(self._lines, 0.0)
        """The share of each line that was taken in the last step; of one that is cut, 1 while anybody needs it."""

    def narrow(self, line: str, left: float) -> None:
        """Leave so much of a line's bandwidth (0 to 1)."""
        self._left[line] = left

    def is_up(self, line: str) -> bool:
        """Whether anything goes over it."""
        return self._left[line] > 0

    def reaches(self, zone: str) -> bool:
        """Whether the data centre and the zone reach each other."""
        names = self._of[zone]
        return not names or any(self._left[name] > 0 for name in names)

    def round_trip_ms(self, zone: str) -> float:
        """The time there and back, over the quickest line that is up; 0 inside the data centre."""
        return min((self._lines[name].round_trip_ms for name in self._of[zone] if self._left[name] > 0), default=0.0)

    def carried(self, requests_per_s: Mapping[str, float]) -> dict[str, float]:
        """What of the requests/s that zones could answer gets there over the lines that they share."""
        taken = dict.fromkeys(self._lines, 0.0)
        for zone, per_s in requests_per_s.items():
            self._spread(zone, per_s, taken)
        fits = {name: min(1.0, self._mb_per_s(name) / mb_per_s) for name, mb_per_s in taken.items() if mb_per_s > 0}
        found = {}
        for zone, per_s in requests_per_s.items():
            names = self._of[zone]
            whole = sum(map(self._mb_per_s, names))
            part = (
                sum(self._mb_per_s(name) / whole * fits.get(name, 1.0) for name in names) if whole else float(not names)
            )
            found[zone] = per_s * part
        return found

    def carry(self, requests_per_s: Mapping[str, float], images_mb_per_s: float = 0.0) -> None:
        """Note what each zone's requests, and copies of images, take of the lines in a step."""
        taken = dict.fromkeys(self._lines, 0.0)
        users = [zone for zone, names in self._of.items() if names]
        for zone in users:
            self._spread(zone, requests_per_s.get(zone, 0.0), taken)
        if images_mb_per_s:
            whole = sum(map(self._mb_per_s, self._lines)) or 1.0
            for name in taken:
                taken[name] += images_mb_per_s * self._mb_per_s(name) / whole
        self.load = {name: self._share(name, mb_per_s) for name, mb_per_s in taken.items()}

    def free_mb_per_s(self, zone: str, share_max: float) -> float:
        """What is left for copies of images to a zone, up to a share of its lines."""
        names = self._of[zone]
        if not names:
            return float("inf")
        return sum(max(0.0, share_max - self.load[name]) * self._mb_per_s(name) for name in names)

    def _spread(self, zone: str, requests_per_s: float, taken: dict[str, float]) -> None:
        names = self._of[zone]
        whole = sum(map(self._mb_per_s, names))
        for name in names:
            share = self._mb_per_s(name) / whole if whole else 0.0
            taken[name] += requests_per_s * share * self._lines[name].request_bytes / 1e6

    def _share(self, name: str, mb_per_s: float) -> float:
        whole = self._mb_per_s(name)
        return min(1.0, mb_per_s / whole) if whole else 1.0

    def _mb_per_s(self, name: str) -> float:
        return self._lines[name].gbit * _MB_PER_GBIT * self._left[name]
