"""The twin's cloud behind the HTTP API of ECS and ECI, as the official SDK calls it."""

from springtide.twin.cloud_api.account import ServedSettings
from springtide.twin.cloud_api.served import ServedCloud, ServedOptions, Sources
from springtide.twin.cloud_api.signature import AccessKey

__all__ = ["AccessKey", "ServedCloud", "ServedOptions", "ServedSettings", "Sources"]
