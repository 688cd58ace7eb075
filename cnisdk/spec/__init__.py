"""Typed objects and versions of the CNI specification. Pure: no I/O, no operating system."""
