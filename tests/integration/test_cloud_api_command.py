"""`springtide cloud serve` and `springtide cloud faults`, as they are typed."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alibabacloud_credentials.client import Client as CredentialsClient
from alibabacloud_credentials.provider import ProfileCredentialsProvider
from alibabacloud_ecs20140526 import models
from alibabacloud_ecs20140526.client import Client
from alibabacloud_tea_openapi.utils_models import Config

from springtide.cli.cloud_keys import read_keys

COMMAND = [sys.executable, "-m", "springtide.cli", "cloud"]
MARKET = """
[market]
refill_share_per_h = 0.0
[market.limits]
creations_per_min = 40
[[market.offers]]
zone = "cn-beijing-h"
instance_type = "ecs.c7.8xlarge"
market = "on_demand"
cores = 32
memory_mb = 65536
price_fen_per_h = 652.3
boot_ms = [200, 400]
"""


def springtide(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def serving(cwd: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*COMMAND, "serve", *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving cn-beijing on http://127.0.0.1:")
        assert "springtide-cloud.ini" in process.stdout.readline()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def ecs(cwd: Path) -> Client:
    """As an operator's program finds the key: by the SDK's own credentials file."""
    file = cwd / "springtide-cloud.ini"
    provider = ProfileCredentialsProvider(profile_file=str(file), profile_name="default")
    address = read_keys(file)
    return Client(
        Config(
            credential=CredentialsClient(provider=provider),
            endpoint=address.endpoint,
            protocol="http",
            region_id=address.region,
        )
    )


async def run_instances(cwd: Path, token: str) -> list[str]:
    request = models.RunInstancesRequest(
        region_id="cn-beijing",
        v_switch_id="vsw-cn-beijing-h",
        instance_type="ecs.c7.8xlarge",
        image_id="image",
        security_group_id="sg-1",
        amount=7,
        min_amount=1,
        client_token=token,
    )
    answer = await ecs(cwd).run_instances_async(request)
    return list(answer.body.instance_id_sets.instance_id_set)


async def test_a_cloud_is_served_broken_stopped_and_served_again(tmp_path: Path) -> None:
    (tmp_path / "cloud.toml").write_text(MARKET)
    options = ("--config", "cloud.toml", "--stock", "20", "--data", "cloud.json")
    with serving(tmp_path, *options) as process:
        assert (tmp_path / "springtide-cloud.ini").stat().st_mode & 0o777 == 0o600
        first = await run_instances(tmp_path, "t1")
        assert len(first) == 7
        struck = springtide("faults", "stock", "cn-beijing-h/", "2", cwd=tmp_path)
        assert struck.returncode == 0, struck.stderr
        assert json.loads(struck.stdout)["stock"] == {"cn-beijing-h/ecs.c7.8xlarge/on_demand": 2}
        assert len(await run_instances(tmp_path, "t2")) == 2
        lost = springtide("faults", "lose-zone", "cn-beijing-h", "--for-s", "1", cwd=tmp_path)
        assert json.loads(lost.stdout)["booting"] + json.loads(lost.stdout)["ready"] == 0
        for fault in (("throttle", "RunInstances", "--for-s", "0.01"), ("slow-boots", "2"), ("reclaim", "0.5")):
            assert springtide("faults", *fault, cwd=tmp_path).returncode == 0
    assert process.returncode == 130
    gone = springtide("faults", "show", cwd=tmp_path)
    assert (gone.returncode, "is it still served" in gone.stderr) == (1, True)
    with serving(tmp_path, *options):
        assert await run_instances(tmp_path, "t1") == first
        shown = json.loads(springtide("faults", "show", cwd=tmp_path).stdout)
        assert (shown["created"], shown["booting"] + shown["ready"]) == (9, 0)
        assert shown["calls"] == {"RunInstances": 1}


def test_bad_options_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[market]\nstocks = 3\n")
    for arguments, word in (
        (("serve", "--config", "bad.toml"), "stocks"),
        (("serve", "--config", "none.toml"), "none.toml"),
        (("serve", "--speed", "0"), "--speed"),
        (("serve", "--stock", "-1"), "--stock"),
        (("faults", "show"), "--keys"),
    ):
        refused = springtide(*arguments, cwd=tmp_path)
        assert (refused.returncode, word in refused.stderr) == (2, True), refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]
