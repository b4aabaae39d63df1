"""The figures of a back office, read when somebody asks."""

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from springtide.model import PaymentOutcome
from springtide.sale.api_keys import KEYS_MAX
from springtide.sale.backoffice.limits import IN_FLIGHT_MAX
from springtide.sale.backoffice.office import Office


class Figures(Collector):
    """For one registry."""

    def __init__(self, office: Office) -> None:
        """All figures are this office's."""
        self._office = office

    @override
    def collect(self) -> Iterable[Metric]:
        yield from self._payments()
        yield from self._merchant()
        load = self._office.load
        yield GaugeMetricFamily("springtide_backoffice_in_flight", "Requests under way.", load.in_flight)
        yield GaugeMetricFamily("springtide_backoffice_in_flight_max", "The most there may be.", IN_FLIGHT_MAX)
        yield CounterMetricFamily("springtide_backoffice_refused", "Requests beyond that, answered 503.", load.refused)
        yield CounterMetricFamily("springtide_backoffice_hung_up", "Clients that left in a request.", load.hung_up)
        yield GaugeMetricFamily("springtide_api_keys", "Keys of the API, as last read.", self._office.keys.size)
        yield GaugeMetricFamily("springtide_api_keys_max", "The most there may be.", KEYS_MAX)
        yield from self._keepers()
        yield CounterMetricFamily("springtide_buyer_tokens", "Buyer tokens issued.", self._office.tokens.issued)

    def _payments(self) -> Iterator[Metric]:
        figures = self._office.payments.figures
        outcomes = CounterMetricFamily("springtide_payments", "Payments by outcome.", labels=["outcome"])
        for outcome in PaymentOutcome:
            outcomes.add_metric([outcome.value], figures.outcomes.get(outcome.value, 0))
        yield outcomes
        yield CounterMetricFamily("springtide_cancelled_orders", "Cancellations.", figures.cancelled)
        yield CounterMetricFamily("springtide_expired_orders", "Orders that expired unpaid.", figures.expired)
        yield CounterMetricFamily("springtide_stock_returns", "Orders whose stock went back.", figures.returned)
        yield CounterMetricFamily("springtide_payment_failures", "Calls that an engine failed.", figures.failures)
        yield GaugeMetricFamily("springtide_expiry_on_hold", "1 while expiry waits.", bool(figures.holding))
        yield CounterMetricFamily("springtide_restocks", "Restocks that were put into stock.", figures.restocked)
        yield CounterMetricFamily("springtide_refunds_due", "Payments that have to be given back.", figures.refunds)
        yield CounterMetricFamily(
            "springtide_unsettled_orders", "Paid orders that the inventory could not be told of.", figures.unsettled
        )
        yield GaugeMetricFamily(
            "springtide_buckets_held_up", "Buckets that take no stock back at present.", figures.held_up
        )

    def _keepers(self) -> Iterator[Metric]:
        if self._office.stock is not None:
            figures = self._office.stock.figures
            yield GaugeMetricFamily("springtide_hot_skus", "SKUs whose stock lies in all buckets.", figures.hot)
            yield CounterMetricFamily("springtide_stock_moved", "Units moved between buckets.", figures.moved_units)
            yield CounterMetricFamily("springtide_stock_moves", "Moves they took.", figures.moves)
            yield CounterMetricFamily("springtide_transfers_resumed", "Transfers that were cut off.", figures.resumed)
            yield CounterMetricFamily("springtide_stock_failures", "Looks that failed.", figures.failures)
        if self._office.rooms is not None:
            for name, (text, read) in self._office.rooms.gauges().items():
                yield GaugeMetricFamily(f"springtide_{name}", f"{text}.", read())

    def _merchant(self) -> Iterator[Metric]:
        figures = self._office.merchant.figures
        yield CounterMetricFamily("springtide_sales_published", "Sales put into the inventory.", figures.published)
        yield CounterMetricFamily("springtide_sales_redefined", "Changes put there.", figures.redefined)
        yield CounterMetricFamily("springtide_restocked_units", "Units put there.", figures.restocked_units)
        yield CounterMetricFamily("springtide_reconcile_passes", "Passes of the repair.", figures.passes)
        yield CounterMetricFamily("springtide_reconcile_failures", "What it could not do.", figures.failures)
        yield GaugeMetricFamily(
            "springtide_sales_troubled", "Sales that are not in the inventory as in the ledger.", figures.troubled
        )
