"""`springtide demo`: one whole sale on this machine, with a verdict.

Everything that is started goes onto one exit stack, so that Ctrl-C, a failure and the good end all take the same way down.
"""

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from springtide.cli.chaos import Chaos, Fault
from springtide.cli.examples import example
from springtide.cli.figures import FleetRecorder, collect_figures
from springtide.cli.measure import unthrottled_rate
from springtide.cli.progress import Progress
from springtide.cli.world import (
    Engines,
    Folders,
    Workers,
    command,
    make_cloud,
    make_runtime,
    make_settings,
    prepare_folders,
    settings_file,
    start_engines,
    start_workers,
)
from springtide.config import Config, CrowdSettings, load
from springtide.console.report import exit_status, write_report
from springtide.decide.forecast import replicas_for
from springtide.drivers.child import Child, spawn
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.process import ProcessRuntime
from springtide.drivers.system import SystemClock, SystemIds
from springtide.errors import ConfigError, EngineError
from springtide.fleet.journal import JournalWriter
from springtide.fleet.loop import ControlLoop
from springtide.model import ReplicaState, Sale, Zone, ZoneKind
from springtide.sale.audit import AuditReport, audit
from springtide.twin.crowd.demand import Demand, load_demand
from springtide.twin.crowd.spec import CrowdSpec, write_spec

BASE_READY_S = 30.0
SETTLE_S = 45.0
LOOP_STOP_S = 5.0
START_IN_S = 1.0
GRACE_MS = 1000
POLL_S = 0.1
