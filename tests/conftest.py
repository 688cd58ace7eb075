"""Fixtures for the whole suite: ``host`` and its relatives come from the pytest plugin of ``cnisdk.testing``."""
