"""Addresses, routes and rules: layer 3."""
