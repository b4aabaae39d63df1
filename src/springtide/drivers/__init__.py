"""The only code that talks to an engine: one module per engine, and every port in memory."""
