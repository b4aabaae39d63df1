"""A balancer for each service that is wanted, from the one engine of a platform."""

import msgspec

from springtide.drivers.balanced_service import ORDER_PATH, BalancedService
from springtide.model import COUNTER, ServiceWish


def balanced(wish: ServiceWish) -> BalancedService:
    """What the engine has to know of a service."""
    if wish.spec.name == COUNTER:
        return msgspec.structs.replace(ORDER_PATH, port=wish.port, health=wish.spec.health)
    return BalancedService(wish.spec.name, port=wish.port, health=wish.spec.health, idempotent=wish.idempotent)
