"""What every inventory says when it refuses a call, by the refusal's name."""

from springtide.errors import InventoryError, InventoryUnavailable

_UNAVAILABLE = {
    "FENCED": "sale {sale} is being rebuilt: repeat the call when that is done",
    "TRANSFERS_FULL": "too many transfers of sale {sale} are open in this bucket: end those that its cut names",
}
_REFUSED = {
    "UNPUBLISHED": "sale {sale} is not published here: publish it first, or check its name",
    "OTHER_PLAN": (
        "sale {sale} is here in part, with other SKUs, stock, buckets or epoch: "
        "publish it as it was begun, or under another id"
    ),
    "REMAINS": "orders or a journal of sale {sale} are here and its stock is not: rebuild it",
    "OTHER_EPOCH": "sale {sale} has another epoch here: read it again and take a later one",
    "OTHER_BUCKETS": "sale {sale} has another number of buckets here: that cannot be changed",
    "SKU_LOST": "sale {sale} has a SKU that its new definition lacks: a published SKU has to stay",
    "NO_SKU": "sale {sale} does not have this SKU: add it to the sale first",
    "NO_BUCKET": "sale {sale} does not have this bucket: check the transfer",
    "OTHER_RESTOCK": "this restock of sale {sale} is there with another SKU or quantity: give the new one its own id",
    "STOCK_FULL": "sale {sale} would have more units of the SKU than an inventory can count: restock fewer",
    "RESTOCKS_FULL": "sale {sale} has had its last restock in this bucket: use another bucket or a new sale",
    "OTHER_TRANSFER": "this transfer of sale {sale} is open with another SKU or target: give the new one its own id",
    "SELLING": "sale {sale} is open in this epoch: restoring it would undo what it has sold; fence it first",
    "OVERTAKEN": "another rebuild of sale {sale} has begun in this bucket: leave it to that one",
}


def refusal(name: str, sale: str) -> InventoryError:
    """The error of a refusal; nothing was written."""
    if name in _UNAVAILABLE:
        return InventoryUnavailable(_UNAVAILABLE[name].format(sale=sale))
    return InventoryError(_REFUSED[name].format(sale=sale))
