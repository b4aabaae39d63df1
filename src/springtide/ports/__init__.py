"""The outside world on one page. Each port states what its failures mean and has a contract suite in `tests/contract`.

All methods may be called concurrently from one event loop unless they say otherwise.
"""

from springtide.ports.fleet import Balancer, Cloud, FleetState, ImageCache, ImageEngine, Runtime, Sensor
from springtide.ports.stores import Inventory, Ledger, WaitingRoom
from springtide.ports.time import Chance, Clock, Ids, Timer

__all__ = [
    "Balancer",
    "Chance",
    "Clock",
    "Cloud",
    "FleetState",
    "Ids",
    "ImageCache",
    "ImageEngine",
    "Inventory",
    "Ledger",
    "Runtime",
    "Sensor",
    "Timer",
    "WaitingRoom",
]
