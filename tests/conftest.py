"""What every test may use: reproducible property tests, and a folder with a path short enough for sockets."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# In CI the same examples every time, so that a failure is about the change; elsewhere new ones, to find more.
settings.register_profile("ci", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


LONG = frozenset(
    (
        "contract/test_balancer_traffic.py",
        "e2e/test_calibrate.py",
        "e2e/test_nodes.py",
        "e2e/test_platform.py",
        "e2e/test_platform_docker.py",
        "e2e/test_platform_sale.py",
        "e2e/test_secrets.py",
        "e2e/test_sweep.py",
        "integration/test_crowd.py",
        "integration/test_docker_runtime.py",
        "integration/test_image_line.py",
        "integration/test_loop_chaos.py",
        "integration/test_postgres_engine.py",
        "integration/test_postgres_group.py",
        "integration/test_registry.py",
        "integration/test_torture.py",
        "integration/test_valkey_keeper.py",
        "integration/test_zone_loss_of_stores.py",
        "twin/test_loop_killed.py",
        "twin/test_seeds.py",
    )
)
"""What takes long because it ends and starts many engines, or the same thing many times: `make test-long`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is long by its file."""
    root = Path(__file__).parent
    for item in items:
        if str(item.path.relative_to(root)) in LONG:
            item.add_marker("long")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder every user may enter: a socket's path ends at 107 bytes; `tmp_path` is longer and private."""
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
