"""The private network: what is cut falls silent, and speaks again when it is healed."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from springtide.drivers import netns
from springtide.drivers.netns import PrivateNetwork

pytestmark = pytest.mark.skipif(bool(netns.missing()), reason=netns.missing() or "possible")

INTERFACES = Path("/sys/class/net")

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
connection, _ = server.accept()
while data := connection.recv(100):
    connection.sendall(data)
"""


def said(connection: socket.socket, words: bytes) -> bytes:
    connection.sendall(words)
    try:
        return connection.recv(100)
    except TimeoutError:
        return b""


def cut_and_healed() -> tuple[bytes, bytes, bytes]:
    """In a thread of its own, since it moves into the network."""
    network = PrivateNetwork()
    node = network.add()
    try:
        with node.entered():
            server = subprocess.Popen([sys.executable, "-c", ECHO, node.host], stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        with socket.create_connection((node.host, 7000), timeout=0.3) as connection:
            before = said(connection, b"before")
            node.cut()
            during = said(connection, b"during")
            node.heal()
            connection.settimeout(20.0)
            after = connection.recv(100)
        server.wait(10)
        server.stdout.close()
    finally:
        network.close()
    return before, during, after


def test_a_cut_node_is_silent_and_what_was_said_to_it_arrives_when_it_is_healed() -> None:
    interfaces = sorted(INTERFACES.iterdir())
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(cut_and_healed).result() == (b"before", b"", b"during")
    assert sorted(INTERFACES.iterdir()) == interfaces
