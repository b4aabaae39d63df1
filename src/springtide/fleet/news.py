"""What goes into the log: each fault when it is news, each alert when it appears and when it ends."""

import re

import structlog

log = structlog.get_logger(__name__)

SOURCES_MAX = 1_000
"""Sources of faults that are remembered; the oldest goes first."""

_FIGURES = re.compile(r"[0-9]+([.,][0-9]+)*")


class News:
    """Remembers what was said: an engine that is down for an hour is one line, not thousands."""

    def __init__(self) -> None:
        """Nothing has been said."""
        self._faults: dict[str, str] = {}
        self._alerts: dict[str, dict[str, str]] = {}

    def fault(self, source: str, error: str, tick: int) -> None:
        """Log a fault unless it is the last one of this source."""
        if self._faults.get(source) == error:
            return
        self._faults[source] = error
        if len(self._faults) > SOURCES_MAX:
            del self._faults[next(iter(self._faults))]
        log.warning("fault", source=source, error=error, tick=tick)

    def alerts(self, service: str, alerts: tuple[str, ...], tick: int) -> None:
        """Log the alerts that are new, and those that are over. Two that differ in figures alone are one."""
        now = {_FIGURES.sub("#", alert): alert for alert in alerts}
        before = self._alerts.get(service, {})
        for kind in now.keys() - before.keys():
            log.error("alert", service=service, alert=now[kind], tick=tick)
        for kind in before.keys() - now.keys():
            log.warning("alert is over", service=service, alert=before[kind], tick=tick)
        self._alerts[service] = now
        if not now:
            del self._alerts[service]
