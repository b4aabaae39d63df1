"""`springtide up` with a sale in the file: the order path is a part of the platform, orders outlive a killed one."""

import json
import os
import shutil
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.commandline import Platform, free_port, processes_with, springtide

pytestmark = pytest.mark.timeout(150)

CONFIG = """
[[zones]]
name = "room-a"
kind = "idc"
nodes_max = 1
cores_per_node = 8

[fleet]
tick_ms = 200
base_replicas = 1
lease_s = 1.0

[counter]
rate_max = 500

[[sales]]
sale = "tea"
title = "Tea"
opens_after_s = 0.0
closes_after_s = 3600.0
hold_s = 600.0

[[sales.skus]]
sku = "cup"
title = "A cup"
price_cny = 5.0
stock = 10
per_buyer_max = 1
"""


@pytest.fixture
def platform() -> Iterator[Platform]:
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield Platform(folder, free_port(), CONFIG)
    finally:
        for pid in processes_with(str(folder)):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def buy(platform: Platform, token: str) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{platform.port}/v1/sales/tea/orders",
        data=json.dumps({"sku": "cup", "quantity": 1}).encode(),
        headers={"Authorization": f"Bearer {token}", "Idempotency-Key": "k1", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return int(answer.status)


def test_a_sale_is_up_sells_and_keeps_its_orders_over_a_kill(platform: Platform) -> None:
    office = free_port()
    ports = ("--port", str(platform.port), "--backoffice-port", str(office))
    status, said = platform.up(*ports)
    assert status == 0, (said, (platform.data / "logs" / "platform.log").read_text())
    assert said["backoffice_url"] == f"http://127.0.0.1:{office}"
    assert platform.get("/s/tea").startswith("<!doctype html>")
    api = ("--url", said["backoffice_url"], "--key-file", str(platform.data / "owner.key"))
    token = springtide("sale", "token", "tea", "ada", *api).stdout.split()[1]
    assert buy(platform, token) == 201

    before = processes_with(str(platform.data / "platform" / "counter.json"))
    running = json.loads((platform.data / "platform" / "running.json").read_text())
    os.kill(running["pid"], signal.SIGKILL)
    until = time.monotonic() + 20
    while "not running" not in platform.call("status").stderr:
        assert time.monotonic() < until
    status, said = platform.up(*ports)
    assert status == 0, (said, (platform.data / "logs" / "platform.log").read_text())
    assert set(before) & set(processes_with(str(platform.data / "platform" / "counter.json")))
    assert buy(platform, token) == 200
    orders = springtide("sale", "orders", "tea", "--json", *api)
    assert [one["buyer"] for one in json.loads(orders.stdout)["orders"]] == ["ada"]

    for name in ("running.json", "settings.json", "counter.json"):
        assert (platform.data / "platform" / name).stat().st_mode & 0o777 == 0o600
    assert platform.call("down").returncode == 0
    assert not processes_with(str(platform.data))
