"""The merchant's side over HTTP: sales, orders, tokens, keys, the payment provider's webhook, health and figures."""

from springtide.sale.backoffice.app import MerchantApi, create_app, merchant_api
from springtide.sale.backoffice.limits import BODY_BYTES_MAX

__all__ = ["BODY_BYTES_MAX", "MerchantApi", "create_app", "merchant_api"]
