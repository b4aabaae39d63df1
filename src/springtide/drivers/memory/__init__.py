"""Every port in memory, with the semantics of the engines: for the twin and for tests."""
