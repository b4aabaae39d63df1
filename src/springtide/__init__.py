"""Springtide: capacity for a flash sale that rises with the crowd and recedes after it, and the sale itself."""

__version__ = "0.1.0"
