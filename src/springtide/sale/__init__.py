"""The order path: from a buyer's request to a recorded, paid or returned order."""
