"""The work of `springtide cloud faults …`: a fault sent to a served cloud, and its state printed as JSON."""

import sys
from pathlib import Path

import httpx

from springtide.cli.cloud_keys import read_keys
from springtide.errors import Refused
from springtide.twin.cloud_api.faults import PATH

TIMEOUT_S = 10.0
_OK = 200


def send(keys: Path, fault: dict[str, object] | None) -> int:
    """Send a fault (None: only ask) and print how the cloud is then. Raises Refused, UserError."""
    address = read_keys(keys)
    headers = {"Authorization": f"Bearer {address.key.access_key_secret}"}
    url = f"http://{address.endpoint}{PATH}"
    try:
        with httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.get(url) if fault is None else client.post(url, json=fault)
    except httpx.HTTPError as error:
        raise Refused(f"the cloud on {address.endpoint} does not answer: {error}; is it still served?") from error
    if answer.status_code != _OK:
        raise Refused(f"the cloud on {address.endpoint} refused: {answer.text}")
    sys.stdout.write(f"{answer.text}\n")
    return 0
