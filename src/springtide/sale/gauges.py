"""Every limit of a counter beside what has been used of it, for `/metrics`."""

from typing import TYPE_CHECKING

from springtide.sale import batcher, buyer_connection, glance, holderset, hotcache, order_status, purchase, refusals
from springtide.sale.metrics import Gauges

if TYPE_CHECKING:
    from springtide.sale.counter import CounterServer


def gauges(counter: "CounterServer") -> Gauges:
    """By name; each is read when the page is."""
    return {**_requests(counter), **_purchases(counter), **_callers(counter), **_memory(counter)}


def _requests(counter: "CounterServer") -> Gauges:
    listener, capacity, server = counter.listener, counter.capacity, counter
    return {
        "in_flight": ("Requests begun and not answered", lambda: listener.in_flight),
        "connections": ("Open connections", lambda: len(listener.connections)),
        "connections_max": ("Limit of open connections", lambda: listener.connections_max),
        "queue_depth": ("Requests that wait to be admitted", lambda: capacity.depth if capacity is not None else 0),
        "queue_depth_max": (
            "Limit of the admission queue, 0 when there is none",
            lambda: capacity.depth_max if capacity is not None else 0,
        ),
        "order_queries": ("Questions about a buyer's orders under way", lambda: server.orders.in_flight),
        "order_queries_max": ("Limit of them", lambda: order_status.LOOKUPS_MAX),
        "queries_remembered": ("Purchases asked about", lambda: server.orders.remembered),
        "queries_remembered_max": ("Limit of them", lambda: 2 * order_status.ASKED_MAX),
        "draining": ("1 while the replica drains", lambda: int(listener.draining)),
    }


def _purchases(counter: "CounterServer") -> Gauges:
    settings = counter.settings
    return {
        "batches_in_flight": ("Calls to the inventory under way", lambda: counter.batcher.in_flight),
        "batches_in_flight_max": ("Limit of them for each bucket", lambda: settings.batches_in_flight_max),
        "purchases_waiting": ("Purchases that wait for a batch", lambda: counter.batcher.waiting),
        "purchases_waiting_max": (
            "Limit of them for each bucket",
            lambda: settings.batch_max * batcher.WAITING_BATCHES_MAX,
        ),
        "inventory_answer_seconds": (
            "How long the inventory takes for a batch lately, in the slowest bucket",
            counter.reserver.answer_s_max,
        ),
        "inventory_answer_seconds_max": ("Beyond this, purchases are shed", lambda: counter.patience_s),
        "purchases_in_doubt": ("Purchases that wait for a look at the sale", lambda: counter.refusals.waiting),
        "purchases_in_doubt_max": ("Limit of them", lambda: refusals.WAITING_MAX),
        "looks": ("Looks at a sale that answered purchases from memory", lambda: counter.refusals.looks),
        "journal_lag_max": ("Journal entries the ledger may be behind", lambda: settings.journal_lag_max),
    }


def _callers(counter: "CounterServer") -> Gauges:
    rates, addresses = counter.rates, counter.addresses
    return {
        "buyers_tracked": ("Buyers whose rate is remembered", lambda: len(rates)),
        "buyers_tracked_max": ("Limit of them", lambda: 2 * rates.callers_max),
        "addresses_tracked": (
            "Addresses whose rate is remembered",
            lambda: len(addresses) if addresses is not None else 0,
        ),
        "addresses_tracked_max": (
            "Limit of them, 0 when addresses have no rate",
            lambda: 2 * addresses.callers_max if addresses is not None else 0,
        ),
    }


def _memory(counter: "CounterServer") -> Gauges:
    return {
        "lines_known": ("Lines of requests that are remembered", lambda: len(counter.listener.lines)),
        "lines_known_max": ("Limit of them", lambda: 2 * glance.LINES_MAX),
        "bodies_known": ("Bodies of purchases that are remembered", lambda: len(counter.bodies)),
        "bodies_known_max": ("Limit of them", lambda: purchase.BODIES_MAX),
        "places_known": ("Targets of purchases that are remembered", buyer_connection.places_known),
        "places_known_max": ("Limit of them", lambda: buyer_connection.PLACES_MAX),
        "sales_cached": ("Sales whose page is kept true", lambda: len(counter.pages)),
        "sales_cached_max": ("Limit of them", lambda: hotcache.SALES_MAX),
        "sold_out_flags": ("SKUs of which no unit was seen last", lambda: counter.pages.sold_out_flags),
        "lookups": ("Sales asked for by requests that wait", lambda: counter.pages.lookups),
        "lookups_max": ("Limit of them", lambda: hotcache.LOOKUPS_MAX),
        "holder_sets": ("Sales whose holders are known", lambda: len(counter.holders)),
        "holder_sets_max": ("Limit of them", lambda: holderset.SETS_MAX),
        "holder_sets_bytes": ("Memory of the holder sets", lambda: counter.holders.bytes_held),
        "holder_sets_fill": ("Share of bits set in the fullest holder set", lambda: counter.holders.fill),
    }
