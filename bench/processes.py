"""The processes of a measurement: servers pinned to one core, load to another, ended by their own handle."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from bench.load import Job, Outcome

STOP_S = 10.0
READY_S = 20.0


def cores() -> tuple[int | None, int | None]:
    """The core for the server measured and the one for everything else; None where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


@contextmanager
def python(module: str, *arguments: str, cpu: int | None) -> Iterator[tuple[int, int]]:
    """A module of ours that prints its port; its process id and port."""
    command = [sys.executable, "-m", module, *arguments]
    with _ended(command, cpu, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.strip():
            raise RuntimeError(f"{module} did not start; run it by hand: {' '.join(command)}")
        port = int(line)
        _until_listening(port)
        yield process.pid, port


def counter(valkey_port: int, token_key: str, cpu: int | None) -> AbstractContextManager[tuple[int, int]]:
    """One replica of the counter, without a limit of its rate."""
    return python("bench.counter_replica", str(valkey_port), token_key, cpu=cpu)


@contextmanager
def recorder(valkey_port: int, dsn: str, nice: int) -> Iterator[int]:
    """The recorder; its process id."""
    command = [sys.executable, "-m", "bench.recorder_replica", str(valkey_port), dsn, str(nice)]
    with _ended(command, None, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline().strip():
            raise RuntimeError(f"the recorder did not start; run it by hand: {' '.join(command)}")
        yield process.pid


@contextmanager
def haproxy(cpu: int | None) -> Iterator[tuple[int, int]]:
    """HAProxy, one thread, answering every request with a constant."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-haproxy-") as folder:
        settings = Path(folder) / "haproxy.cfg"
        settings.write_text(
            "global\n  maxconn 2000\n  nbthread 1\n"
            "defaults\n  mode http\n  timeout client 30s\n  timeout connect 5s\n  timeout server 5s\n"
            f"frontend constant\n  bind 127.0.0.1:{port}\n"
            '  http-request return status 200 content-type "text/plain" string "ok"\n'
        )
        with _ended(["haproxy", "-db", "-f", str(settings)], cpu, stdout=subprocess.DEVNULL) as process:
            _until_listening(port)
            yield process.pid, port


def has_haproxy() -> bool:
    return shutil.which("haproxy") is not None


def load(job: Job) -> Outcome:
    finished = subprocess.run(
        [sys.executable, "-m", "bench.load"],
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    return msgspec.json.decode(finished.stdout, type=Outcome)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pin(pid: int, cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(pid, {cpu})


@contextmanager
def _ended(command: Sequence[str], cpu: int | None, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout)
    try:
        pin(process.pid, cpu)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _until_listening(port: int) -> None:
    until_s = time.monotonic() + READY_S
    while time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}")
