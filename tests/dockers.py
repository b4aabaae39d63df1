"""Docker Engines for tests: the one of DOCKER_HOST where it answers, or some of our own, each on a link of its own.

An engine of our own is in a network namespace, on a private network that the test's thread is moved into: containers
are reached by routes over the link, as in a remote zone. Nothing of the machine is touched, and nothing is left.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from springtide.drivers.image_build import Recipe, build
from springtide.drivers.netns import Namespace, PrivateNetwork
from springtide.drivers.netns import missing as no_network
from springtide.drivers.system import SystemClock
from tests.integration.echo_service import ECHO

START_S = 60.0
STOP_S = 60.0


class Engine:
    """An engine to use. `address` is where its published ports are reached; None: it is on this machine."""

    def __init__(self, url: str, address: str | None = None) -> None:
        self.url = url
        self.address = address
        self.images: list[str] = []

    def docker(self, *words: str) -> str:
        """What a docker command says."""
        done = subprocess.run(
            ["docker", "--host", self.url, *words], check=True, capture_output=True, text=True, timeout=120
        )
        return done.stdout

    async def echo_image(self, cache: Path) -> str:
        """An image of `echo_replica.py`, built once."""
        reference = f"springtide-test-{os.getpid()}:echo"
        if reference not in self.images:
            folder = cache / "echo"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ECHO, folder)
            await build(self.url, Recipe(reference, folder), SystemClock(), cache / "layers")
            self.images.append(reference)
        return reference

    def clear(self) -> None:
        """Remove the images that tests have built here."""
        for reference in self.images:
            self.docker("image", "rm", "--force", reference)
        self.images.clear()


class OwnEngine(Engine):
    """An engine that tests start, kill and start again; its data outlives it until `close`."""

    def __init__(self, node: Namespace, number: int, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="st-d", dir="/tmp"))
        super().__init__(f"unix://{self.folder}/s", node.host)
        self._node = node
        self._network = f"172.31.{number}.1/24"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        subprocess.run(["ip", "route", "add", f"172.31.{number}.0/24", "via", node.host], check=True)

    def start(self) -> None:
        """Start it; returns when it answers."""
        words = ["dockerd", "--host", self.url, "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/x"]
        words += ["--pidfile", f"{self.folder}/pid", "--bip", self._network, *self._options]
        with self._node.entered(), (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while why := _no_answer(self.url):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{why}\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its containerd as a crash would; its containers may run on."""
        assert self._process
        containerd = int((self.folder / "x/containerd/containerd.pid").read_text())
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        # It follows its parent, but not at once, and a new engine would take it for a living one.
        until = time.monotonic() + STOP_S
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < until:
                os.kill(containerd, signal.SIGKILL)
                time.sleep(0.02)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It stands still inside the block."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        # A thread that runs on another core stops a moment later, and may answer until then.
        stopped, _ = os.waitpid(self._process.pid, os.WUNTRACED)
        assert stopped == self._process.pid
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Let it end."""
        assert self._process
        self._process.terminate()
        self._process.wait(STOP_S)

    def close(self) -> None:
        """End it and all its containers, and remove its data."""
        try:
            assert self._process
            if self._process.poll() is not None:
                self.start()
            if containers := self.docker("ps", "--all", "--quiet").split():
                self.docker("rm", "--force", *containers)
            self.stop()
        finally:
            mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
            for mount in sorted((each for each in mounts if each.startswith(f"{self.folder}/")), reverse=True):
                subprocess.run(["umount", "--lazy", mount], check=False)
            shutil.rmtree(self.folder, ignore_errors=True)


def missing_own() -> str:
    """Why no engine can be started here; empty when one can."""
    if shutil.which("dockerd") is None:
        return "Docker Engine (dockerd) is not installed"
    return no_network()


@contextlib.contextmanager
def own_engines(count: int, *options: str) -> Iterator[list[OwnEngine]]:
    """Some engines, each on a link of its own; skips the test where none can be started."""
    if reason := missing_own():
        pytest.skip(reason)
    network = PrivateNetwork()
    with contextlib.ExitStack() as stack:
        stack.callback(network.close)
        engines = []
        for number in range(1, count + 1):
            engines.append(OwnEngine(network.add(), number, *options))
            stack.callback(engines[-1].close)
        yield engines


@contextlib.contextmanager
def an_engine() -> Iterator[Engine]:
    """The engine of DOCKER_HOST, or else one of our own; skips the test where there is neither."""
    url = os.environ.get("DOCKER_HOST", "")
    if url and not _no_answer(url):
        engine = Engine(url)
        try:
            yield engine
        finally:
            engine.clear()
        return
    with own_engines(1) as (engine,):
        yield engine


def _no_answer(url: str) -> str:
    try:
        done = subprocess.run(
            ["docker", "--host", url, "version"], check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr if done.returncode else ""
