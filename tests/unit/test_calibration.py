"""A calibration's file, and what simulations make of it."""

from pathlib import Path

import msgspec
import pytest

from springtide.errors import ConfigError
from springtide.twin.simulation.calibration import (
    Calibration,
    Figure,
    calibrated,
    figure,
    load_calibration,
    write_calibration,
)
from springtide.twin.simulation.flow import PathSettings

MEASURED = {
    "purchases_per_cpu_s": 30_000.0,
    "sold_out_per_cpu_s": 60_000.0,
    "pages_per_cpu_s": 120_000.0,
    "purchases_per_s": 20_000.0,
    "purchase_ms": 1.5,
    "purchase_p99_ms": 4.0,
    "stack_ms": 2.0,
    "stack_p99_ms": 6.0,
    "inventory_single_per_s": 20_000.0,
    "inventory_batch_per_s": 200_000.0,
    "recorder_per_s": 70_000.0,
    "replica_start_ms": 500.0,
}
CALIBRATION = msgspec.convert(
    {name: msgspec.to_builtins(figure("", [value])) for name, value in MEASURED.items()}, Calibration
)


def test_a_figure_is_the_median_with_its_spread() -> None:
    assert figure("ms", [3.0, 1.0, 2.0]) == Figure(2.0, 1.0, 3.0, "ms", (3.0, 1.0, 2.0))
    assert figure("ms", [3.0, 1.0, 2.0]).spread == 1.0


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    write_calibration(path, CALIBRATION)
    assert load_calibration(path) == CALIBRATION


def test_toml_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    tables = "".join(
        f'[{name}]\nmedian = {value}\nlow = {value}\nhigh = {value}\nunit = ""\nruns = [{value}]\n'
        for name, value in MEASURED.items()
    )
    path.write_text(tables)
    assert load_calibration(path) == CALIBRATION


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("{}", "no calibration"),
        ('{"pages": 1}', "no calibration"),
        (msgspec.json.encode(msgspec.structs.replace(CALIBRATION, version=99)).decode(), "another version"),
    ],
)
def test_what_cannot_be_used_is_said_with_the_remedy(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says) as raised:
        load_calibration(path)
    assert "springtide calibrate" in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        write_calibration(tmp_path / "file" / "calibration.json", CALIBRATION)


def test_an_order_path_takes_over_what_was_measured() -> None:
    settings = calibrated(PathSettings(stock=7, shards=3), CALIBRATION)
    assert (settings.stock, settings.shards) == (7, 3)
    assert (settings.recorder_per_s, settings.service_ms, settings.service_p99_ms) == (70_000.0, 2.0, 6.0)
    assert (settings.sold_out_cost, settings.page_cost) == (0.5, 0.25)
    assert settings.shard_per_s == pytest.approx(200_000.0)


def test_smaller_batches_make_a_shard_slower() -> None:
    assert CALIBRATION.shard_per_s(1) == pytest.approx(20_000.0)
    assert CALIBRATION.shard_per_s(64) == pytest.approx(200_000.0)
    assert 20_000.0 < CALIBRATION.shard_per_s(8) < 200_000.0
    assert calibrated(PathSettings(stock=1), CALIBRATION, batch=1).shard_per_s == pytest.approx(20_000.0)
