"""An event that capacity is rented for: what it needs, what stands already, and what its machines come over."""

import msgspec

from springtide.model.cloud import Line, Market, StockLevel


class ApiLimit(msgspec.Struct, frozen=True):
    """How fast machines of some markets can be ordered: they share one API and its limits.

    `batch` machines go into a call, which takes `call_ms`; `in_flight` calls run at once. `burst` machines may be made
    at once, then `per_s` a second.
    """

    name: str
    markets: tuple[Market, ...]
    batch: int
    burst: int
    per_s: float
    call_ms: int = 1_000
    in_flight: int = 4


class ImageCopy(msgspec.Struct, frozen=True):
    """The registry caches of a cloud zone: how many copies cross the line, and what they deliver together."""

    zone: str
    bytes_per_s: float
    copies: int = 1


class EventImage(msgspec.Struct, frozen=True):
    """The image that new machines need: its size, the caches by zone, and what one machine takes and unpacks of it.

    A size of 0 is an image that the machines bring along. A zone without a cache pulls over the line.
    """

    size_bytes: int = 0
    caches: tuple[ImageCopy, ...] = ()
    node_bytes_per_s: float = 1.25e9
    unpack_bytes_per_s: float = 100e6


class LineNeed(msgspec.Struct, frozen=True):
    """What the lines to the cloud carry: `base_bytes_per_s` always, `request_bytes` for each request served there."""

    lines: tuple[Line, ...] = ()
    base_bytes_per_s: float = 0.0
    request_bytes: float = 0.0


class Odds(msgspec.Struct, frozen=True):
    """What may go wrong, as probabilities; the sources are in decide/readiness.py.

    `boot_failed`: a machine never comes up. `stock_out`: an offer has nothing left when it is asked, by what the
    cloud says of it; what was to come from it is ordered elsewhere `spill_ms` later. `zone_lost`: a zone is gone when
    it is needed. `spot_per_h`: a spot machine is taken away, once the first `spot_safe_ms` have passed.
    """

    boot_failed: float = 0.002
    stock_out_plenty: float = 0.01
    stock_out_low: float = 0.10
    zone_lost: float = 0.00025
    spot_per_h: float = 0.03
    spot_safe_ms: int = 3_600_000
    spill_ms: int = 15_000

    def stock_out(self, level: StockLevel) -> float:
        """Of an offer of this level."""
        known = {StockLevel.PLENTY: self.stock_out_plenty, StockLevel.LOW: self.stock_out_low}
        return known.get(level, 1.0)


class EventNeed(msgspec.Struct, frozen=True):
    """What an event wants, and within what limits.

    `cores` are wanted in all, `free_cores` of them stand in the data centre already; the rest has to be ready at
    `at_ms - ready_ms` with this `probability`, and is kept for `lasts_ms + release_ms`. `requests_per_s` is the peak
    of the whole service (0: not known). `rooms` are the data centre's, with what the service loses in cores when one is
    gone. Shares and replica sizes are as in ProvisionNeed. Spending limits of 0 are
    none. A quota that is too small is raised within `quota_ms`.
    """

    name: str
    at_ms: int
    lasts_ms: int
    cores: int
    probability: float = 0.99
    free_cores: int = 0
    rooms: dict[str, int] = {}
    ready_ms: int = 60_000
    release_ms: int = 600_000
    requests_per_s: float = 0.0
    replica_cores: float = 1.0
    replica_memory_mb: int = 0
    arch: tuple[str, ...] = ("amd64",)
    start_ms: int = 5_000
    image: EventImage = EventImage()
    line: LineNeed = LineNeed()
    apis: tuple[ApiLimit, ...] = ()
    odds: Odds = Odds()
    zone_share_max: float = 1.0
    spot_share_max: float = 0.0
    spend_max_fen: float = 0.0
    spend_max_fen_per_h: float = 0.0
    quota_ms: int = 3 * 86_400_000

    @property
    def wanted_ms(self) -> int:
        """When all cores have to be ready."""
        return self.at_ms - self.ready_ms

    @property
    def released_ms(self) -> int:
        """Until when what is rented is paid for."""
        return self.at_ms + self.lasts_ms + self.release_ms

    @property
    def rented_cores(self) -> int:
        """What has to be rented."""
        return max(0, self.cores - self.free_cores)
