"""What a new machine does when it boots: the cloud-init text that brings up the runtime of its zone.

The image has Docker installed. An engine that listens on the network does so without TLS, on a machine without a
public address: who may reach it is the security group's matter. A zone's own `user_data` can do better.
"""

import base64
import json

from springtide.drivers.alibaba_settings import USER_DATA_BYTES_MAX
from springtide.errors import CloudRefused


def docker_user_data(zone: str, image_cache: str = "", port: int = 0) -> str:
    """A cloud-config for a machine of this zone: its engine, with the zone's image cache (`HOST:PORT`) as a mirror.

    With a port the engine listens on the network too.
    """
    daemon: dict[str, object] = {
        "hosts": ["unix:///var/run/docker.sock", *([f"tcp://0.0.0.0:{port}"] if port else [])],
        "labels": [f"springtide.zone={zone}"],
        "live-restore": True,
    }
    if image_cache:
        daemon["registry-mirrors"] = [f"http://{image_cache}"]
        daemon["insecure-registries"] = [image_cache]
    config = {
        "write_files": [
            {"path": "/etc/docker/daemon.json", "content": json.dumps(daemon), "permissions": "0644"},
            {
                # The unit of Debian and Ubuntu names a host itself, which the engine refuses beside `hosts`.
                "path": "/etc/systemd/system/docker.service.d/springtide.conf",
                "content": "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd\n",
                "permissions": "0644",
            },
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "docker"],
            ["systemctl", "restart", "docker"],
        ],
    }
    return f"#cloud-config\n{json.dumps(config, indent=1)}\n"  # JSON is YAML


def encoded(user_data: str) -> str:
    """User data as RunInstances wants it. Raises CloudRefused when it is larger than 32 KB."""
    data = user_data.encode()
    if len(data) > USER_DATA_BYTES_MAX:
        raise CloudRefused(f"user data of {len(data)} bytes is over the {USER_DATA_BYTES_MAX} of ECS; shorten it")
    return base64.b64encode(data).decode()
