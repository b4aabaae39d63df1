"""Every error Springtide raises on purpose. Each message says what to do next.

SpringtideError
├── UserError                    bad input; the command line ends with status 2
│   └── ConfigError              springtide.toml, a demand file or a SPRINGTIDE_* variable
├── Refused                      the back office refused, or did not answer; the command line ends with status 1
├── EngineError                  an engine (Valkey, PostgreSQL, the load balancer) did not start or has died
├── InventoryError
│   ├── InventoryUnavailable     nothing was sent: the call had no effect
│   └── OutcomeUnknown           sent, but no answer came: repeat it with the same key
├── LedgerError
│   └── LedgerUnavailable        nothing is known of the call: repeat it, all calls are idempotent
├── BalancerError                the balancer could not be read or written
├── ReplicaError                 a replica did not start, or is not known to the runtime
├── ImageError                   an image could not be built, copied, listed or deleted
│   └── ImageUnavailable         a registry or an engine did not answer: repeat the call, it goes on from there
├── SensorError                  a figure for scaling could not be had: what it said last ages
├── FleetStateError              the fleet's state could not be read or written: repeat it
│   └── Deposed                  somebody else leads: stop acting at once
└── CloudError
    ├── CloudUnavailable         no answer, or a fault on their side: repeat with the same client token
    │   └── CloudThrottled       too many calls of this kind: repeat after `retry_after_s`
    ├── CloudOutOfStock          the zone cannot deliver: ask another zone or type
    ├── CloudQuotaExceeded       the account's limit: raise the quota or ask for less
    └── CloudRefused             the account or the request itself: no repetition helps, a person has to look
"""


class SpringtideError(Exception):
    """The root: catch this to catch everything Springtide raises on purpose."""


class UserError(SpringtideError):
    """What the person gave cannot be used; the message names the place and the remedy."""


class ConfigError(UserError):
    """One or more mistakes in the configuration, one line each."""


class Refused(SpringtideError):
    """The back office refused what was asked, or cannot be reached; the message says what to do."""


class EngineError(SpringtideError):
    """An engine did not start, or died; the message names its log file."""


class InventoryError(SpringtideError):
    """The inventory could not do what was asked."""


class InventoryUnavailable(InventoryError):
    """Not connected, or refused before anything was written: the call had no effect."""


class OutcomeUnknown(InventoryError):
    """The call was sent and no answer came: it may have taken effect. Repeat it with the same key."""


class LedgerError(SpringtideError):
    """The ledger could not do what was asked."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be reached; every ledger call is idempotent and can be repeated."""


class BalancerError(SpringtideError):
    """The load balancer could not be read or written."""


class ReplicaError(SpringtideError):
    """A replica did not become healthy in time, or is not known to its runtime."""


class ImageError(SpringtideError):
    """An image could not be built, or a registry did not do what was asked."""


class ImageUnavailable(ImageError):
    """A registry or an engine did not answer; what was copied stays, and the call can be repeated."""


class SensorError(SpringtideError):
    """A figure from outside could not be read."""


class FleetStateError(SpringtideError):
    """The fleet's state could not be read or written; every call can be repeated."""


class Deposed(FleetStateError):
    """The term is over: another loop leads, and nothing was written."""


class CloudError(SpringtideError):
    """The cloud refused or failed."""


class CloudUnavailable(CloudError):
    """No answer, or a fault on the cloud's side: repeat the request with the same client token."""


class CloudOutOfStock(CloudError):
    """The zone has no more of this type: ask another zone or type."""


class CloudQuotaExceeded(CloudError):
    """The account's limit is reached: raise the quota or ask for less."""


class CloudThrottled(CloudUnavailable):
    """Too many calls of this kind: repeat the request, with the same client token, after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        """`retry_after_s` is the cloud's word, or what its documentation says."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CloudRefused(CloudError):
    """The account (balance, permission, credentials) or the order itself is at fault: repeating it changes nothing."""
