"""What this machine's building blocks were measured to do, in a file that simulations read."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.errors import ConfigError
from springtide.twin.simulation.flow import PathSettings

VERSION = 1


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured figure: the median of its runs, the least and the most of them, and the runs themselves."""

    median: float
    low: float
    high: float
    unit: str
    runs: tuple[float, ...] = ()

    @property
    def spread(self) -> float:
        """From the least to the most, as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0


def figure(unit: str, runs: Sequence[float]) -> Figure:
    """The figure of these runs, at least one."""
    return Figure(statistics.median(runs), min(runs), max(runs), unit, tuple(runs))


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The building blocks of the order path, each measured alone with the real engine.

    Of one counter: `purchases_per_cpu_s`, `sold_out_per_cpu_s` and `pages_per_cpu_s` are answers for each CPU second of
    its process; `purchases_per_s` is what it did with everything else on the same machine. `purchase_ms` and
    `purchase_p99_ms` are of purchases at a rate far below that; `stack_ms` and `stack_p99_ms` the same through the
    balancer, with several replicas and the recorder. `inventory_single_per_s` and `inventory_batch_per_s` are purchases
    in batches of one and of `batch`; `recorder_per_s` are orders into the ledger. `replica_start_ms` is from the
    decision to start a replica until it is ready to serve.
    """

    version: int = VERSION
    machine: str = ""
    at_ms: int = 0
    batch: int = 64
    purchases_per_cpu_s: Figure
    sold_out_per_cpu_s: Figure
    pages_per_cpu_s: Figure
    purchases_per_s: Figure
    purchase_ms: Figure
    purchase_p99_ms: Figure
    stack_ms: Figure
    stack_p99_ms: Figure
    inventory_single_per_s: Figure
    inventory_batch_per_s: Figure
    recorder_per_s: Figure
    replica_start_ms: Figure

    def shard_per_s(self, batch: float) -> float:
        """Purchases/s of one shard in batches of this mean size: each call and each purchase in it has its price."""
        one_s, many_s = 1 / self.inventory_single_per_s.median, 1 / self.inventory_batch_per_s.median
        purchase_s = max(0.0, (self.batch * many_s - one_s) / (self.batch - 1))
        call_s = one_s - purchase_s
        return 1 / (call_s / batch + purchase_s)

    def counters_per_core(self, load_max: float = 1.0) -> float:
        """Purchases/s that a core of counters takes when it is run at this load."""
        return self.purchases_per_cpu_s.median * load_max


def calibrated(settings: PathSettings, calibration: Calibration, batch: float | None = None) -> PathSettings:
    """The same order path with what was measured: rates of shard and recorder, service times, and costs.

    `batch` is the mean size of batches at the inventory; None: as it was measured.
    """
    purchase = calibration.purchases_per_cpu_s.median
    return msgspec.structs.replace(
        settings,
        shard_per_s=calibration.shard_per_s(batch or calibration.batch),
        recorder_per_s=calibration.recorder_per_s.median,
        service_ms=calibration.stack_ms.median,
        service_p99_ms=calibration.stack_p99_ms.median,
        sold_out_cost=purchase / calibration.sold_out_per_cpu_s.median,
        page_cost=purchase / calibration.pages_per_cpu_s.median,
    )


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, JSON. Raises ConfigError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; name another file with --out") from error


def load_calibration(path: Path) -> Calibration:
    """Read the file, JSON or TOML. Raises ConfigError with the mistake and the remedy."""
    try:
        text = path.read_bytes()
        read = msgspec.toml.decode if path.suffix == ".toml" else msgspec.json.decode
        calibration = read(text, type=Calibration)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; make it with `springtide calibrate`") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: no calibration: {error}; make it anew with `springtide calibrate`") from error
    if calibration.version != VERSION:
        raise ConfigError(f"{path}: written by another version; make it anew with `springtide calibrate`")
    return calibration
