"""Replicas as Docker sees them: the container that a replica is created as, and the replica that a container is."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from springtide.drivers.replica_launch import PORT_VARIABLE, REPLICA_VARIABLE, filled
from springtide.model import HealthCheck, ReplicaSpec, ServiceSpec

PORT = 8080
"""What a program is told to listen on in its container, where its service names no port."""

LABEL = "springtide.run/"
BUILT_LABEL = f"{LABEL}built"
"""On images that `drivers/image_build.py` made: their programs are known to run without any privilege."""

DRAINING = ".draining"
"""The end of a draining container's name: a name can be changed, labels cannot."""

_NANO = 1_000_000_000
_MB = 1024 * 1024
_CPU_CORES_MIN = 0.01  # "Range of CPUs is from 0.01 to …" (Docker Engine)
_TMP_MB = 64


class Limits(msgspec.Struct, frozen=True):
    """What every container of a runtime gets, whatever its service. `publish_on` "" publishes no port."""

    publish_on: str = ""
    hardened: bool = True
    init: bool = True
    log_mb: int = 10
    log_files: int = 2
    pids_max: int = 4_096
    network: str = "bridge"


class Care(msgspec.Struct, frozen=True):
    """What is needed to look after a replica without its service's definition. Of secrets only the files' names."""

    health: HealthCheck = HealthCheck()
    drain_signal: str = ""
    start_ms_max: int = 15_000
    stop_grace_ms: int = 5_000
    memory_mb: int = 0
    port: int = PORT
    secrets: dict[str, str] = {}

    @classmethod
    def of(cls, service: ServiceSpec) -> "Care":
        """For replicas of this revision."""
        return cls(
            health=service.health,
            drain_signal=service.drain_signal,
            start_ms_max=service.start_ms_max,
            stop_grace_ms=service.stop_grace_ms,
            memory_mb=service.memory_mb,
            port=service.port or PORT,
            secrets=service.secrets,
        )


class Found(msgspec.Struct, frozen=True):
    """A container of ours, as the engine lists it. `running` is not said of one that was created and not started."""

    container_id: str
    spec: ReplicaSpec
    care: Care
    created_ms: int
    running: bool
    begun: bool
    draining: bool
    ip: str
    published_port: int

    @property
    def replica_id(self) -> str:
        """Whose it is."""
        return self.spec.replica_id


def container_name(fleet: str, replica_id: str) -> str:
    """One name for one replica: the engine refuses a second container with it."""
    return f"springtide-{fleet}-{replica_id}"


def container_body(
    fleet: str, spec: ReplicaSpec, service: ServiceSpec, image: str, env: Mapping[str, str], limits: Limits
) -> dict[str, Any]:
    """The body of `POST /containers/create`; `env` is what the program finds beside the replica's id and its port."""
    care = Care.of(service)
    port = f"{care.port}/tcp"
    variables = {**env, REPLICA_VARIABLE: spec.replica_id, PORT_VARIABLE: str(care.port)}
    body: dict[str, Any] = {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in sorted(variables.items())],
        "Labels": _labels(fleet, spec, care),
        "ExposedPorts": {port: {}},
        "HostConfig": _host_config(service, port, limits),
    }
    if service.command:
        values = {"replica_id": spec.replica_id, "zone": spec.zone, "port": str(care.port)}
        # The command stands for all that runs: an image's own entry point would take it for arguments.
        body["Entrypoint"], body["Cmd"] = [], filled(service.command, values)
    return body


def found_of(listed: Mapping[str, Any]) -> Found | None:
    """A replica from an entry of `GET /containers/json`; None when its labels are not ours."""
    labels = listed.get("Labels") or {}
    try:
        care = msgspec.json.decode(labels[f"{LABEL}care"], type=Care)
        spec = ReplicaSpec(
            replica_id=labels[f"{LABEL}replica"],
            zone=labels[f"{LABEL}zone"],
            node_id=labels[f"{LABEL}node"],
            service=labels[f"{LABEL}service"],
            revision=labels[f"{LABEL}revision"],
        )
    except (KeyError, msgspec.DecodeError):
        return None
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    return Found(
        container_id=listed["Id"],
        spec=spec,
        care=care,
        created_ms=int(listed.get("Created", 0)) * 1000,
        running=listed.get("State") in {"running", "paused"},
        begun=listed.get("State") != "created",
        draining=any(name.endswith(DRAINING) for name in listed.get("Names") or ()),
        ip=next((str(each["IPAddress"]) for each in networks.values() if each.get("IPAddress")), ""),
        published_port=next(
            (
                int(port["PublicPort"])
                for port in listed.get("Ports") or ()
                if port.get("PrivatePort") == care.port and port.get("PublicPort") and ":" not in port.get("IP", "")
            ),
            0,
        ),
    )


def fleet_filter(fleet: str, container_id: str = "") -> str:
    """The filter of a listing that shows this fleet's replicas and no others; with an id, one of them."""
    filters = {"label": [f"{LABEL}fleet={fleet}", f"{LABEL}replica"]}
    return json.dumps({**filters, "id": [container_id]} if container_id else filters)


def _labels(fleet: str, spec: ReplicaSpec, care: Care) -> dict[str, str]:
    return {
        f"{LABEL}fleet": fleet,
        f"{LABEL}replica": spec.replica_id,
        f"{LABEL}service": spec.service,
        f"{LABEL}revision": spec.revision,
        f"{LABEL}zone": spec.zone,
        f"{LABEL}node": spec.node_id,
        f"{LABEL}care": msgspec.json.encode(care).decode(),
    }


def _host_config(service: ServiceSpec, port: str, limits: Limits) -> dict[str, Any]:
    host: dict[str, Any] = {
        "Init": limits.init,
        # A container that ended stays ended: the loop has to see it, and would find one that came back at another
        # address, or of a revision that is gone.
        "RestartPolicy": {"Name": "no"},
        "NetworkMode": limits.network,
        "PidsLimit": limits.pids_max,
        "SecurityOpt": ["no-new-privileges"],
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": f"{limits.log_mb}m", "max-file": str(limits.log_files)},
        },
    }
    if service.cores:
        host["NanoCpus"] = round(max(_CPU_CORES_MIN, service.cores) * _NANO)
    if service.memory_mb:
        # Both the same: memory and swap together may be no more than memory, so there is no swap.
        host["Memory"] = host["MemorySwap"] = service.memory_mb * _MB
    if limits.publish_on:
        host["PortBindings"] = {port: [{"HostIp": limits.publish_on, "HostPort": ""}]}
    if limits.hardened:
        host["ReadonlyRootfs"] = True
        host["CapDrop"] = ["ALL"]
        host["Tmpfs"] = {"/tmp": f"rw,nosuid,nodev,size={_TMP_MB}m,mode=1777"}  # noqa: S108 - the container's own
    return host
