"""How the image gets to the nodes of a simulation: over the line once into each zone's cache, and on from there."""

from collections.abc import Callable

from springtide.decide.images import plan_images
from springtide.model import ImageDemand, ImageLine, ImagePolicy, WarmImage
from springtide.twin.kernel import Kernel
from springtide.twin.simulation.lines import Lines
from springtide.twin.simulation.pulls import PullQueue
from springtide.twin.simulation.scenario import Scenario

IMAGE = "service:1"
_MB = 1_000_000
_MB_PER_GBIT = 125.0
_BEHIND_THE_ORIGIN = 1e12  # bytes/s of a zone without a line: the image is there


class Delivery:
    """The caches of all zones. What is copied over the lines, and when, is decided by `decide.images`."""

    def __init__(self, kernel: Kernel, scenario: Scenario, lines: Lines) -> None:
        """The owner's zones have the image, and those whose cache has it already."""
        image_mb = scenario.service.image_mb
        self._kernel = kernel
        self._image_bytes = round(image_mb * _MB)
        self._lines = lines
        self._share_max = scenario.policy.line_share_max
        self._missing_mb = {z.name: image_mb for z in scenario.zones if z.lines and not z.image_cached}
        self._copying: set[str] = set()
        self._gone: set[str] = set()
        self._policy = ImagePolicy()
        self._pulls = {
            zone.name: PullQueue(kernel, image_mb, zone.cache_gbit * _MB_PER_GBIT, zone.node_gbit * _MB_PER_GBIT)
            for zone in scenario.zones
        }
        self._cache_bytes_per_s = {zone.name: zone.cache_gbit * _MB_PER_GBIT * _MB for zone in scenario.zones}
        for zone in self._missing_mb:
            self._pulls[zone].open(is_open=False)

    @property
    def pulling(self) -> int:
        """Nodes that pull the image now."""
        return sum(map(len, self._pulls.values()))

    @property
    def missing(self) -> tuple[str, ...]:
        """Zones whose cache lacks the image."""
        return tuple(self._missing_mb)

    def pull(self, zone: str, done: Callable[[], None]) -> None:
        """Let a node get the image from its zone's cache."""
        self._pulls[zone].pull(done)

    def set_gone(self, zone: str, *, gone: bool) -> None:
        """Whether a zone's cache answers at all."""
        (self._gone.add if gone else self._gone.discard)(zone)
        self._pulls[zone].open(is_open=not gone and zone not in self._missing_mb)

    def decide(self) -> None:
        """Begin what `decide.images` wants begun."""
        waiting = [zone for zone in self._missing_mb if zone not in self._copying and zone not in self._gone]
        if not waiting:
            return
        demands = [
            ImageDemand(zone, IMAGE, self._image_bytes, round(self._missing_mb[zone] * _MB) or 1) for zone in waiting
        ]
        lines = [ImageLine(zone, self._line_bytes_per_s(zone), self._cache_bytes_per_s[zone]) for zone in waiting]
        for action in plan_images(self._kernel.now_ms, demands, lines, self._policy):
            if isinstance(action, WarmImage):
                self._copying.add(action.zone)

    def advance(self, dt_s: float) -> float:
        """Let the copies go on for a step; the MB/s that they take of the lines."""
        copying = [zone for zone in self._copying if zone not in self._gone]
        moved = 0.0
        for zone in sorted(copying):
            rate = self._lines.free_mb_per_s(zone, self._share_max) / len(copying)
            copied = min(self._missing_mb[zone], rate * dt_s)
            moved += copied
            self._missing_mb[zone] -= copied
            if self._missing_mb[zone] <= 0:
                del self._missing_mb[zone]
                self._copying.discard(zone)
                self._pulls[zone].open(is_open=True)
        return moved / dt_s

    def _line_bytes_per_s(self, zone: str) -> float:
        return max(1.0, min(_BEHIND_THE_ORIGIN, self._lines.free_mb_per_s(zone, self._share_max) * _MB))
