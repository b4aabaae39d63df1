"""Replicas as real containers: what the contract suite cannot say of every runtime."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.drivers.docker import DockerRuntime, DockerSettings, EnsureImage
from springtide.drivers.http_get import http_get
from springtide.drivers.image_build import Recipe, build
from springtide.drivers.system import SystemClock
from springtide.errors import ImageError, ReplicaError
from springtide.model import Replica, ReplicaSpec, ReplicaState, ServiceSpec
from tests.dockers import Engine, OwnEngine, an_engine, own_engines
from tests.integration.echo_service import ECHO, echo, in_container

CLOCK = SystemClock()
FLEET = f"it-{os.getpid()}"

Make = Callable[..., DockerRuntime]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with an_engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@pytest.fixture
async def image(engine: Engine, image_cache: Path) -> str:
    return await engine.echo_image(image_cache)


@asynccontextmanager
async def runtimes(engine: Engine) -> AsyncIterator[Make]:
    """Runtimes on one engine; no container of theirs is left afterwards."""
    made: list[DockerRuntime] = []

    def make(
        fleet: str = FLEET,
        ensure_image: EnsureImage | None = None,
        call_s: float = 15.0,
        *,
        hardened: bool | None = None,
    ) -> DockerRuntime:
        settings = DockerSettings(fleet, engine.url, ("idc-a",), engine.address, hardened=hardened, call_s=call_s)
        made.append(DockerRuntime(settings, CLOCK, ensure_image))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            with contextlib.suppress(ReplicaError):
                await each.close()
    left = engine.docker("ps", "--all", "--format", "{{.Names}}").split()
    assert [name for name in left if f"-{FLEET}" in name] == []


@pytest.fixture
async def make(engine: Engine) -> AsyncIterator[Make]:
    async with runtimes(engine) as make:
        yield make


def spec(replica_id: str = "r1") -> ReplicaSpec:
    return ReplicaSpec(replica_id, "idc-a", "idc-a-1", "echo", "1")


def service(image: str, *options: str) -> ServiceSpec:
    return in_container(echo("echo", *options, revision="1"), image)


async def until(runtime: DockerRuntime, state: ReplicaState, *names: str) -> dict[str, Replica]:
    while True:
        found = {replica.replica_id: replica for replica in await runtime.list()}
        if all(name in found and found[name].state is state for name in names or ("r1",)):
            return found
        await asyncio.sleep(0.02)


async def started(runtime: DockerRuntime, what: ServiceSpec, *names: str) -> dict[str, Replica]:
    await runtime.define(what)
    for name in names or ("r1",):
        await runtime.start(spec(name))
    return await until(runtime, ReplicaState.READY, *names)


async def failure(runtime: DockerRuntime, what: ServiceSpec) -> str:
    await runtime.define(what)
    await runtime.start(spec())
    return (await until(runtime, ReplicaState.FAILED))["r1"].failure


def inspected(engine: Engine, name: str, fleet: str = FLEET) -> dict[str, Any]:
    (about,) = json.loads(engine.docker("inspect", f"springtide-{fleet}-{name}"))
    return dict(about)


async def test_a_container_has_its_limits_and_no_privilege(engine: Engine, make: Make, image: str) -> None:
    limited = msgspec.structs.replace(service(image), cores=0.25, memory_mb=96)
    await started(make(), limited)
    host = inspected(engine, "r1")["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"]) == (250_000_000, 96 << 20, 96 << 20)
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges"])
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert host["RestartPolicy"]["Name"] == "no"
    name = f"springtide-{FLEET}-r1"
    who = engine.docker("exec", name, "python3", "-c", "import os; print(os.getuid()); open('/tmp/x', 'w')")
    assert who.strip() == "10001"
    with pytest.raises(subprocess.CalledProcessError):
        engine.docker("exec", name, "python3", "-c", "open('/app/x', 'w')")


async def test_an_image_of_others_keeps_its_rights(engine: Engine, make: Make, image: str) -> None:
    foreign = f"springtide-test-{os.getpid()}:foreign"
    container = engine.docker("create", image, "anything").strip()
    engine.docker("commit", "--change", "LABEL springtide.run/built=", container, foreign)
    engine.docker("rm", container)
    engine.images.append(foreign)
    runtime = make(hardened=False)
    await started(runtime, service(foreign))
    host = inspected(engine, "r1")["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (False, None, ["no-new-privileges"])


async def test_a_core_share_is_enforced(make: Make, image: str) -> None:
    """Two busy threads with a tenth of a core are held up by the engine; with all cores they are not."""
    runtime = make()
    busy = service(image, "threads=2")
    await runtime.define(msgspec.structs.replace(busy, cores=0.1))
    await runtime.define(msgspec.structs.replace(busy, name="free", cores=0))
    await runtime.start(spec("tenth"))
    await runtime.start(ReplicaSpec("free", "idc-a", "idc-a-1", "free", "1"))
    await until(runtime, ReplicaState.READY, "tenth", "free")
    since_s = CLOCK.monotonic_s()
    before = await used(runtime)
    while (now := await used(runtime))["free"] < before["free"] + 2:
        await asyncio.sleep(0.1)
    # A busy machine gives less, never more.
    assert now["tenth"] - before["tenth"] < 0.1 * (CLOCK.monotonic_s() - since_s) * 1.5 + 0.1
    held = {name: (await statistics(runtime, name))["cpu_stats"]["throttling_data"] for name in ("tenth", "free")}
    assert held["tenth"]["throttled_periods"] > 0
    assert held["free"]["throttled_periods"] == 0


async def used(runtime: DockerRuntime) -> dict[str, float]:
    return {
        name: (await statistics(runtime, name))["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9
        for name in runtime._slots
    }


async def statistics(runtime: DockerRuntime, replica_id: str) -> dict[str, Any]:
    container = runtime._slots[replica_id].container_id
    return dict(await runtime._engine.query("", f"containers/{container}/stats", {"stream": "false", "one-shot": "1"}))


async def test_secrets_are_in_no_label(engine: Engine, make: Make, image: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    with_secret = msgspec.structs.replace(service(image), secrets={"PASSWORD": str(tmp_path / "secret")})
    await started(make(), with_secret)
    assert "hunter2" not in json.dumps(inspected(engine, "r1")["Config"]["Labels"])


async def test_two_fleets_on_one_engine_do_not_see_each_other(make: Make, image: str) -> None:
    one, other = make(), make(fleet=f"{FLEET}-b")
    await started(one, service(image))
    await started(other, service(image), "r2")
    assert {replica.replica_id for replica in await one.list()} == {"r1"}
    assert {replica.replica_id for replica in await other.list()} == {"r2"}
    await other.close()
    assert [replica.state for replica in await one.list()] == [ReplicaState.READY]


async def test_a_container_that_somebody_removed_is_no_replica_any_more(engine: Engine, make: Make, image: str) -> None:
    runtime = make()
    await started(runtime, service(image), "r1", "r2")
    engine.docker("rm", "--force", f"springtide-{FLEET}-r1")
    assert [replica.replica_id for replica in await runtime.list()] == ["r2"]
    await started(runtime, service(image))


async def test_a_loop_that_waits_for_the_lead_sees_what_the_leader_does(make: Make, image: str) -> None:
    leader, standby = make(), make()
    await started(leader, service(image), "r1", "r2")
    await until(standby, ReplicaState.READY, "r1", "r2")
    await leader.drain("r1")
    assert (await until(standby, ReplicaState.DRAINING, "r1"))["r2"].state is ReplicaState.READY
    await leader.stop("r1")
    assert [replica.replica_id for replica in await standby.list()] == ["r2"]


async def test_an_image_that_is_missing_is_named(make: Make) -> None:
    assert "image nothing:1 is not on the engine" in await failure(make(), service("nothing:1"))


async def test_the_zones_cache_names_the_image_to_run(engine: Engine, make: Make, image: str) -> None:
    asked: list[str] = []

    async def ensure(reference: str) -> str:
        asked.append(reference)
        return image

    await started(make(ensure_image=ensure), service("shop:7"))
    assert asked == ["shop:7"]
    assert inspected(engine, "r1")["Config"]["Image"] == image


async def test_an_image_that_cannot_be_had_is_a_failure(make: Make) -> None:
    async def ensure(reference: str) -> str:
        raise ImageError(f"{reference} is nowhere; build it")

    assert "shop:7 is nowhere" in await failure(make(ensure_image=ensure), service("shop:7"))


async def test_more_cores_than_there_are_is_a_failure(make: Make, image: str) -> None:
    huge = msgspec.structs.replace(service(image), cores=4_000)
    assert "refused" in await failure(make(), huge)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (ServiceSpec("echo", "1", command=("x",)), "no image"),
        (ServiceSpec("echo", "1", image="x:1", command=("x", "{announce}")), "cannot announce"),
    ],
    ids=["image", "announce"],
)
async def test_what_cannot_be_a_container_is_refused(make: Make, what: ServiceSpec, why: str) -> None:
    with pytest.raises(ReplicaError, match=why):
        await make().define(what)


async def test_a_zone_of_another_engine_is_refused(make: Make, image: str) -> None:
    runtime = make()
    await runtime.define(service(image))
    with pytest.raises(ReplicaError, match="does not serve idc-b"):
        await runtime.start(ReplicaSpec("r1", "idc-b", "n", "echo", "1"))


@pytest.mark.parametrize("url", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:9", "nonsense"])
async def test_an_engine_that_is_not_there_is_named(url: str) -> None:
    runtime = DockerRuntime(DockerSettings(FLEET, url, ("idc-a",)), CLOCK)
    with pytest.raises(ReplicaError, match=f"(?s){url}.*(start|give)"):
        await runtime.list()
    await runtime.detach()


LOOP = """
import asyncio, os, sys
from springtide.drivers.docker import DockerRuntime, DockerSettings
from springtide.drivers.system import SystemClock
from springtide.model import ReplicaSpec, ReplicaState, ServiceSpec

async def main(fleet, url, address, image, when):
    runtime = DockerRuntime(DockerSettings(fleet, url, ("idc-a",), address or None), SystemClock())
    command = ("python3", "/app/echo_replica.py", "{port}")
    await runtime.define(ServiceSpec("echo", "1", command=command, image=image, drain_signal="SIGUSR1"))
    for name in ("r1", "r2", "r3"):
        await runtime.start(ReplicaSpec(name, "idc-a", "idc-a-1", "echo", "1"))
    if when == "later":
        while [replica.state for replica in await runtime.list()] != [ReplicaState.READY] * 3:
            await asyncio.sleep(0.02)
        await runtime.drain("r2")
    else:
        await asyncio.sleep(float(when))
    os._exit(0)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("when", ["later", "0.02", "0.1", "0.3", "0.6"])
async def test_a_loop_that_crashed_leaves_no_orphan_and_no_duplicate(
    engine: Engine, make: Make, image: str, when: str
) -> None:
    """Whatever it had begun when it died, the next loop starts what it wants and has each replica once."""
    words = [sys.executable, "-c", LOOP, FLEET, engine.url, engine.address or "", image, when]
    await asyncio.to_thread(subprocess.run, words, check=True, timeout=60)
    runtime = make()
    await runtime.define(service(image))
    names = ("r1", "r2", "r3")
    for name in names:
        await runtime.start(spec(name))
    if when == "later":
        assert (await until(runtime, ReplicaState.DRAINING, "r2"))["r1"].state is ReplicaState.READY
    else:
        await until(runtime, ReplicaState.READY, *names)
    running = engine.docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"label=springtide.run/fleet={FLEET}")
    assert len(running.split()) == 3


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[OwnEngine]:
    with own_engines(1, *getattr(request, "param", ())) as (engine,):
        yield engine


async def test_a_killed_engine_takes_its_replicas_along_and_they_are_replaced(
    own: OwnEngine, image_cache: Path
) -> None:
    image = await own.echo_image(image_cache)
    async with runtimes(own) as make:
        runtime = make()
        await started(runtime, service(image), "r1", "r2")
        own.kill()
        with pytest.raises(ReplicaError, match="start"):
            await runtime.list()
        own.start()
        failed = await until(runtime, ReplicaState.FAILED, "r1", "r2")
        assert "ended by itself" in failed["r1"].failure
        for name in ("r1", "r2"):
            await runtime.stop(name)
        (replica, *_) = (await started(runtime, service(image), "r3", "r4")).values()
        assert (await http_get(CLOCK, replica.host, replica.port, "/", 5.0))[0] == 200


@pytest.mark.parametrize("own", [("--live-restore",)], indirect=True, ids=["live-restore"])
async def test_replicas_outlive_an_engine_that_lets_them(own: OwnEngine, image_cache: Path) -> None:
    image = await own.echo_image(image_cache)
    async with runtimes(own) as make:
        runtime = make()
        before = await started(runtime, service(image), "r1", "r2")
        own.kill()
        replica = before["r1"]
        with pytest.raises(ReplicaError):
            await runtime.list()
        own.start()
        after = await until(runtime, ReplicaState.READY, "r1", "r2")
        assert {name: (each.host, each.port) for name, each in after.items()} == {
            name: (each.host, each.port) for name, each in before.items()
        }
        assert (await http_get(CLOCK, replica.host, replica.port, "/", 5.0))[0] == 200


async def test_an_engine_that_hangs_is_told_from_one_that_answers(own: OwnEngine, image_cache: Path) -> None:
    image = await own.echo_image(image_cache)
    async with runtimes(own) as make:
        runtime = make(call_s=1.0)
        await started(runtime, service(image))
        with own.frozen(), pytest.raises(ReplicaError, match="did not answer within 1 s"):
            await runtime.list()
        assert [replica.state for replica in await runtime.list()] == [ReplicaState.READY]


async def test_where_containers_are_out_of_reach_their_ports_are_published(own: OwnEngine, image_cache: Path) -> None:
    """The engine is said to be on this machine, and its bridge is not: as with an engine in a virtual machine."""
    image = await own.echo_image(image_cache)
    runtime = DockerRuntime(DockerSettings(FLEET, own.url, ("idc-a",)), CLOCK)
    await runtime.define(service(image))
    await runtime.start(spec())
    while not own.docker("ps", "--quiet"):
        await asyncio.sleep(0.05)
    bindings = inspected(own, "r1")["HostConfig"]["PortBindings"]
    assert bindings == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    await runtime.close()


async def test_zones_of_several_engines(image_cache: Path) -> None:
    with own_engines(2) as engines:
        replicas: list[Replica] = []
        for engine, zone in zip(engines, ("cloud-a", "cloud-b"), strict=True):
            image = await engine.echo_image(image_cache)
            runtime = DockerRuntime(DockerSettings(FLEET, engine.url, (zone,), engine.address), CLOCK)
            await runtime.define(service(image))
            await runtime.start(ReplicaSpec(f"r-{zone}", zone, f"{zone}-1", "echo", "1"))
            replicas += (await until(runtime, ReplicaState.READY, f"r-{zone}")).values()
            await runtime.detach()
        for replica in replicas:
            assert (await http_get(CLOCK, replica.host, replica.port, "/", 5.0))[0] == 200
        assert len({replica.host for replica in replicas}) == 2


async def test_the_same_folder_makes_the_same_image(engine: Engine, image_cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text(ECHO.read_text())
    recipe = Recipe(f"springtide-test-{os.getpid()}:shop", folder, ("python3", "shop.py", "8080"))
    engine.images.append(recipe.reference)
    first = await build(engine.url, recipe, CLOCK, image_cache / "layers")
    again = await build(engine.url, recipe, CLOCK, tmp_path / "elsewhere")
    assert again.image_id == first.image_id
    assert not any(layer.sent for layer in again.layers)
    assert engine.docker("inspect", "--format", "{{.Id}}", recipe.reference).strip() == first.image_id
    (folder / "shop.py").write_text(ECHO.read_text() + "\n")
    changed = await build(engine.url, recipe, CLOCK, image_cache / "layers")
    assert [(layer.name, layer.sent) for layer in changed.layers] == [("python", False), ("program", True)]
    assert changed.image_id != first.image_id


async def test_springtide_runs_from_its_own_image(engine: Engine, image_cache: Path) -> None:
    recipe = Recipe(f"springtide-test-{os.getpid()}:springtide", command=("--version",))
    engine.images.append(recipe.reference)
    built = await build(engine.url, recipe, CLOCK, image_cache / "layers")
    assert [layer.name for layer in built.layers] == ["python", "packages", "program"]
    said = engine.docker("run", "--rm", "--read-only", "--cap-drop", "ALL", "--network", "none", recipe.reference)
    assert said.strip().count(".") == 2
    run = ["run", "--rm", "--read-only", recipe.reference]
    check = "import os, ssl, sqlite3, uvloop, httptools, asyncpg, libvalkey, pydantic_core; print(os.getuid())"
    assert engine.docker(*run, "python3", "-c", check).strip() == "10001"
    assert "--replica-id" in engine.docker(*run, "springtide", "run", "counter", "--help")


async def test_an_image_by_a_dockerfile(engine: Engine, image: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f'FROM {image}\nENV COLOUR=blue\nCOPY note.txt /app/\nCMD ["python3", "-V"]\n')
    (tmp_path / "note.txt").write_text("hello")
    recipe = Recipe(f"springtide-test-{os.getpid()}:by-file", tmp_path, dockerfile="Dockerfile")
    built = await build(engine.url, recipe, CLOCK)
    engine.images.append(recipe.reference)
    assert built.size_bytes > 1_000_000
    assert (
        engine.docker("run", "--rm", recipe.reference, "python3", "-c", "print(open('/app/note.txt').read())")
        == "hello\n"
    )
    (tmp_path / "Dockerfile").write_text("FROM nowhere.invalid/nothing:1\n")
    with pytest.raises(ImageError, match="refused"):
        await build(engine.url, recipe, CLOCK)
