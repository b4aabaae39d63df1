"""The command line, and the only place that wires drivers to their users."""

from springtide.cli.app import main

__all__ = ["main"]
