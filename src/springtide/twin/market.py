"""The twin's cloud: offers with a stock nobody sees, quotas, limits on calls, boots that take their time, a bill.

It is a world on a kernel's clock, advanced by plain calls: `springtide cloud serve` puts it behind the HTTP API,
a simulation calls it directly.
"""
