"""`springtide sale …` against a back office in a process of its own, on the real engines."""

import csv
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from springtide.cli import main
from springtide.cli.roles import RoleSettings
from springtide.config import CounterSettings
from springtide.drivers.postgres import PostgresLedger
from springtide.drivers.private_file import write_private
from springtide.model import Payment, Reservation
from tests.e2e.commandline import command, environment, springtide
from tests.integration.order_path import CLOCK, Engines, now_ms, started_engines

TOML = """
sale = "live"
title = "Live room"
opens_at = {opens}
closes_at = {closes}
hold_s = 60
buckets = 2

[[skus]]
sku = "tea"
title = "Tea"
price_cny = 19.99
stock = 10
per_buyer_max = 2
"""


@dataclass(frozen=True)
class Office:
    engines: Engines
    url: str
    secret: str
    log: Path


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    with started_engines() as engines:
        settings = RoleSettings(
            inventory=f"127.0.0.1:{engines.valkey.port}",
            ledger_dsn=engines.postgres.dsn,
            token_master="11" * 32,
            webhook_secret="22" * 32,
            counter=CounterSettings(),
            rate_max=None,
        )
        write_private(folder / "settings.json", settings)
        announce, log = folder / "port.json", folder / "log"
        # The first key is made in the ledger, whose address, with its password, is not on the command line.
        made = subprocess.run(
            command("sale", "key", "create", "first", "--role", "owner"),
            capture_output=True,
            text=True,
            check=True,
            env=environment(SPRINGTIDE_LEDGER=engines.postgres.dsn),
        )
        arguments = ["--settings", str(folder / "settings.json"), "--announce", str(announce)]
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command("run", "backoffice", *arguments), stdout=output, stderr=output, env=environment()
            ) as process,
        ):
            try:
                until = time.monotonic() + 30
                while not announce.exists():
                    assert time.monotonic() < until, log.read_text()
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.05)
                port = json.loads(announce.read_text())["port"]
                yield Office(engines, f"http://127.0.0.1:{port}", made.stdout.strip(), log)
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
    shutil.rmtree(folder)


@pytest.fixture
def cli(office: Office, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Cli":
    monkeypatch.setenv("SPRINGTIDE_URL", office.url)
    monkeypatch.setenv("SPRINGTIDE_API_KEY", office.secret)
    monkeypatch.setenv("COLUMNS", "160")
    return Cli(monkeypatch, capsys)


class Cli:
    """Commands in this process: a Python that starts for each would be most of the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr("sys.argv", ["springtide", "sale", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(ended.value.code or 0), out, err)


def sale_file(tmp_path: Path, **changes: str) -> Path:
    text = TOML.format(opens="2040-11-11T20:00:00+08:00", closes="2040-11-11T21:00:00+08:00")
    for old, new in changes.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{old} ="))
        text = text.replace(line, new)
    path = tmp_path / "sale.toml"
    path.write_text(text)
    return path


async def sell(engines: Engines, count: int) -> None:
    ledger = await PostgresLedger.connect(engines.postgres.dsn, CLOCK)
    at_ms = now_ms()
    orders = [
        Reservation(f"o{number:04}", "live", 0, f"b{number}", "k", "tea", 1, at_ms, at_ms + 600_000)
        for number in range(count)
    ]
    await ledger.record(orders)
    await ledger.pay(Payment("p-short", "o0001", "live", "b1", 1))
    await ledger.close()


async def test_a_sale_from_the_command_line(cli: Cli, office: Office, tmp_path: Path) -> None:
    created = cli("create", str(sale_file(tmp_path)), "--json")
    assert created.status == 0, created.err
    assert created.json["opens_ms"] == 2_236_248_000_000
    assert created.json["skus"] == [
        {"sku": "tea", "title": "Tea", "price_fen": 1999, "stock": 10, "per_buyer_max": 2, "spread": False}
    ]
    assert "draft" in cli("show", "live").out
    assert cli("publish", "live", "--json").json["state"] == "scheduled"
    edited = cli("edit", str(sale_file(tmp_path, title='title = "Evening room"')), "--revision", "2")
    assert "Evening room" in edited.out, edited.err
    stale = cli("edit", str(sale_file(tmp_path)), "--revision", "2")
    assert (stale.status, "revision 3" in stale.err) == (1, True)
    assert "Evening room" in cli("list").out
    assert cli("open", "live", "--json").json["state"] == "open"
    assert cli("pause", "live", "--json").json["state"] == "paused"
    assert cli("resume", "live", "--json").json["state"] == "open"
    added = cli("restock", "live", "tea", "5", "--key", "r1")
    assert "5 units of tea added, 15 are left now" in added.out
    assert "had been added before" in cli("restock", "live", "tea", "5", "--key", "r1").out
    name, token = cli("token", "live", "b1").out.split()
    assert (name, token.startswith("v1.b1.live.")) == ("b1", True)

    await sell(office.engines, 150)
    assert len(cli("orders", "live", "--json").json["orders"]) == 100
    assert "o0007" in cli("orders", "live", "--buyer", "b7").out
    out = tmp_path / "orders.csv"
    assert cli("export", "live", "--out", str(out)).status == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert (len(rows), rows[7]["buyer"], rows[7]["amount_cny"]) == (150, "b7", "19.99")
    assert not out.with_name("orders.csv.part").exists()
    assert "o0001" in cli("refunds").out
    assert cli("refunds", "--see", "p-short", "--json").json["refunds"][0]["seen_ms"] is not None
    assert cli("cancel", "live", "o0003").status == 0

    assert cli("keys", "rotate", "--json").json == {"oldest": 1, "newest": 2}
    assert cli("keys", "retire", "1", "--json").json == {"oldest": 2, "newest": 2}
    assert cli("keys", "retire", "2").status == 1
    assert cli("close", "live", "--json").json["state"] == "closed"
    assert cli("open", "live").status == 1


def test_keys_of_roles(cli: Cli, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cli("key", "create", "reader", "--role", "viewer", "--json").json
    path = tmp_path / "key"
    path.write_text(f"{made['secret']}\n")
    assert cli("list", "--key-file", str(path)).status == 0
    refused = cli("pause", "live", "--key-file", str(path))
    assert (refused.status, "role_too_low" in refused.err) == (1, True)
    assert made["secret"] not in cli("key", "list").out
    assert "is revoked" in cli("key", "revoke", str(made["key_id"])).out
    gone = cli("list", "--key-file", str(path))
    assert (gone.status, "unauthorized" in gone.err) == (1, True)
    monkeypatch.delenv("SPRINGTIDE_API_KEY")
    assert cli("list").status == 2
    log = office.log.read_text()
    assert office.secret not in log
    assert str(made["secret"]) not in log
    assert "merchant_call" in log


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"opens_at": "opens_at = 2040-11-11T20:00:00"}, "opens_at: write a moment with its offset"),
        ({"price_cny": "price_cny = 0.001"}, "skus.0.price_cny: 0.001 is finer"),
        ({"stock": "stock = -1"}, "skus.0.stock"),
        ({"title": "colour = 1"}, "colour"),
        ({"hold_s": "hold_s = 60\nhold_ms = 60000"}, "hold_s and hold_ms say the same"),
        ({"title": "title ="}, "sale.toml"),
    ],
    ids=["offset", "price", "stock", "unknown", "twice", "toml"],
)
def test_a_mistake_in_a_file_names_its_place(cli: Cli, tmp_path: Path, changes: dict[str, str], named: str) -> None:
    done = cli("create", str(sale_file(tmp_path, **changes)))
    assert (done.status, named in done.err) == (2, True), done.err


def test_bad_input_is_2_and_nobody_there_is_1(cli: Cli, tmp_path: Path) -> None:
    assert cli("create", str(tmp_path / "none.toml")).status == 2
    assert cli("show", "..").status == 2
    assert cli("show", "a b").status == 2
    assert cli("show", "nosuch").status == 1
    assert cli("restock", "live", "tea", "many").status == 2
    assert cli("list", "--url", "http://127.0.0.1:9").status == 1
    assert cli("list", "--url", "nonsense").status == 2
    assert cli("token", "live").status == 2


def test_as_a_command_of_its_own(office: Office) -> None:
    done = subprocess.run(
        command("sale", "list", "--json"),
        capture_output=True,
        text=True,
        check=False,
        env=environment(SPRINGTIDE_URL=office.url, SPRINGTIDE_API_KEY=office.secret),
    )
    assert (done.returncode, "sales" in json.loads(done.stdout)) == (0, True)
    assert springtide("sale", "nosuch").returncode == 2
