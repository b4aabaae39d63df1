"""How long the slowest of a hundred answers wait for a free counter, by a queueing approximation.

H. Sakasegawa, "An approximation formula" for the queue length of M/G/c, Annals of the Institute of Statistical
Mathematics 29 (1977) 67-75: with c servers at utilisation u, u^(√(2(c+1))-1) of the arrivals wait, and these wait
s/(c(1-u)) in the mean, s being the service time; for other than independent arrivals and exponential services times
(ca²+cs²)/2 (J. F. C. Kingman, "The single server queue in heavy traffic", 1961). The wait of those who wait is taken to
be exponential, which it is for M/M/c and in heavy traffic. From a utilisation of 1 on there is no steady state, and the
queue itself tells the wait.
"""

import math

from springtide.twin.simulation.flow import PathSettings

SLOWEST = 0.01
"""The share of the answers that take longer than the 99th percentile."""

_PERCENTILE = 1.0 / SLOWEST


def service_p99_ms(settings: PathSettings) -> float:
    """The 99th percentile of an answer that waits for nobody: as it was measured, or as the service time varies.

    A service time with the squared coefficient of variation v is taken to be a fixed part and an exponential one of √v.
    """
    if settings.service_p99_ms:
        return settings.service_p99_ms
    varies = math.sqrt(settings.service_scv)
    return settings.service_ms * (1.0 - varies + varies * math.log(_PERCENTILE))


def wait_p99_s(utilisation: float, servers: float, service_s: float, variation: float) -> float:
    """The 99th percentile of the wait of all arrivals, seconds; `variation` is (ca²+cs²)/2. Utilisation below 1."""
    waiting_share = utilisation ** (math.sqrt(2.0 * (servers + 1.0)) - 1.0)
    if waiting_share * _PERCENTILE <= 1.0:
        return 0.0
    mean_s = variation * service_s / (servers * (1.0 - utilisation))
    return mean_s * math.log(_PERCENTILE * waiting_share)


def mixed_p99_ms(base_ms: float, share: float, extra_ms: float) -> float:
    """The 99th percentile where a `share` of the answers takes up to `extra_ms` more, evenly spread.

    The others take `base_ms` at the slowest that counts; so it is exact for a base that does not vary.
    """
    if share * _PERCENTILE <= 1.0:
        return base_ms
    return base_ms + extra_ms * (1.0 - 1.0 / (_PERCENTILE * share))
