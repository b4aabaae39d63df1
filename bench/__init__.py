"""Measurements: `python -m bench [NAME…]`. Each compares with references that run in the same call."""
