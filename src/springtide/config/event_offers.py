"""What is for rent, as an event's file has it: typed in, or as a CSV file of types with their prices and zones."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from springtide.config.fields import Count, NotNegative, Positive, Share
from springtide.errors import ConfigError
from springtide.model import FEN_PER_CNY, Market, Offer, StockLevel

ROWS_MAX = 5_000
"""The most types that a CSV file may have; Alibaba Cloud has some 200 in a region."""

_MB_PER_GIB = 1024
_COLUMNS = ("instance_type", "arch", "vcpu", "memory_gib", "cny_per_hour", "zones")

Boot = Annotated[tuple[Positive, Positive], Meta(description="seconds: the median and the 99th percentile")]


class BootSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[boot]`: seconds from a machine's order until it can pull an image, `[median, 99th percentile]`."""

    ecs_s: Boot = (60.0, 180.0)
    eci_s: Boot = (15.0, 45.0)

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        for name, boot in (("ecs_s", self.ecs_s), ("eci_s", self.eci_s)):
            require_boot(name, boot)

    def ms(self, market: Market) -> tuple[int, int]:
        """Of a market, in milliseconds."""
        median, p99 = self.eci_s if market is Market.ECI else self.ecs_s
        return round(median * 1000), round(p99 * 1000)


class SpotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[spot]`: what spot costs where its price is not given, as a share of the price on demand; 0: nothing is spot."""

    price_share: Share = 0.0


class OfferSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[offers]]`: a type of machine, in these zones (none: all of them) and markets.

    `stock` is how many a zone has, where that is known. `spot_price_cny_per_h` of 0 is taken from `[spot]`.
    """

    type: str
    cores: Count
    memory_gib: Positive
    price_cny_per_h: Positive
    markets: Annotated[tuple[Market, ...], Meta(min_length=1, max_length=3)] = (Market.ON_DEMAND,)
    zones: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    arch: str = "amd64"
    stock: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    level: StockLevel = StockLevel.PLENTY
    spot_price_cny_per_h: NotNegative = 0.0
    boot_s: Boot | None = None

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if not self.type:
            raise ValueError("type is empty; give the cloud's name of the type, such as ecs.c7.8xlarge")
        if Market.IDC in self.markets:
            raise ValueError(f'{self.type} is on the market "idc"; machines of the data centre are [[idc]]')
        if self.boot_s:
            require_boot(f"boot_s of {self.type}", self.boot_s)

    def models(self, zones: Sequence[str], boot: BootSettings, spot: SpotSettings) -> list[Offer]:
        """One offer for each zone and market. Raises ValueError for spot without a price."""
        return [self._model(zone, market, boot, spot) for zone in self.zones or zones for market in self.markets]

    def _model(self, zone: str, market: Market, boot: BootSettings, spot: SpotSettings) -> Offer:
        price = self.price_cny_per_h
        if market is Market.SPOT:
            price = self.spot_price_cny_per_h or price * spot.price_share
            if not price:
                raise ValueError(f"{self.type} needs spot_price_cny_per_h, or price_share in [spot]")
        own = (round(self.boot_s[0] * 1000), round(self.boot_s[1] * 1000)) if self.boot_s else None
        return Offer(
            zone=zone,
            instance_type=self.type,
            market=market,
            cores=self.cores,
            memory_mb=round(self.memory_gib * _MB_PER_GIB),
            price_fen_per_h=price * FEN_PER_CNY,
            level=self.level,
            stock=self.stock,
            arch=self.arch,
            boot_ms=own or boot.ms(market),
        )


def require_boot(name: str, boot: tuple[float, float]) -> None:
    """Raise ValueError unless the percentile is not below the median."""
    if boot[1] < boot[0]:
        raise ValueError(f"{name} is {list(boot)}: give [median, 99th percentile], the smaller one first")


def read_csv(path: Path, zones: Sequence[str], spot: SpotSettings) -> tuple[OfferSettings, ...]:
    """The types in a CSV file, in those of its zones that the event names. Raises ConfigError, one line a mistake.

    Its columns are `instance_type,arch,vcpu,memory_gib,cny_per_hour,zones`, and `stock` if it is known. A zone may be
    written as the last letter of its name.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            rows = [row for row, _ in zip(reader, range(ROWS_MAX + 1), strict=False)]
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; offers names a CSV file beside the event's file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if missing:
        raise ConfigError(f"{path}: there is no column {missing[0]}; the first line is {','.join(_COLUMNS)}")
    if len(rows) > ROWS_MAX:
        raise ConfigError(f"{path}: more than {ROWS_MAX} rows; leave out the types that nobody would rent")
    found, mistakes = [], []
    for line, row in enumerate(rows, start=2):
        try:
            offer = _row(row, zones, spot)
        except (ValueError, msgspec.ValidationError) as error:
            mistakes.append(f"{path}:{line}: {error}")
            continue
        if offer.zones:
            found.append(offer)
    if mistakes:
        raise ConfigError("\n".join(mistakes[:20]))
    if not found:
        raise ConfigError(f"{path}: none of its types is in the zones {', '.join(zones)}; give the zones that it has")
    return tuple(found)


def _row(row: dict[str, str], zones: Sequence[str], spot: SpotSettings) -> OfferSettings:
    named = row["zones"].split()
    mine = [zone for zone in zones if zone in named or any(zone.endswith(f"-{letter}") for letter in named)]
    markets = [Market.ON_DEMAND, *([Market.SPOT] if spot.price_share else [])]
    known = {"stock": row["stock"]} if row.get("stock") else {}
    return msgspec.convert(
        {
            "type": row["instance_type"],
            "arch": row["arch"],
            "cores": row["vcpu"],
            "memory_gib": row["memory_gib"],
            "price_cny_per_h": row["cny_per_hour"],
            "markets": markets,
            "zones": mine,
            **known,
        },
        OfferSettings,
        strict=False,
    )
