"""`springtide sale …`: all of its commands, gathered; loaded when one of them is called."""

from springtide.cli.sale_commands import sale
from springtide.cli.sale_keys import key, keys, token

__all__ = ["sale"]

for part in (key, keys, token):
    sale.command(part)
# By name: it loads drivers, which the other commands do not need.
sale.command(
    "springtide.cli.sale_rebuild:rebuild_sale", name="rebuild", help="Put a sale back whose inventory was lost."
)
