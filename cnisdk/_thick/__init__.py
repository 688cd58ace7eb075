"""Resident mode: run plugins without starting an interpreter for each request. Only the programs import it."""
