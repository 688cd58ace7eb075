"""Short terms in which cases are written: levels, and the kinds of plugins that a case applies to."""

from __future__ import annotations

from .judgement import Kind, Level

MUST, SHOULD, OPINION = Level

EVERY = frozenset(Kind)
INTERFACE = frozenset({Kind.INTERFACE})
IPAM = frozenset({Kind.IPAM})
CHAINED = frozenset({Kind.CHAINED})
ATTACHING = INTERFACE | CHAINED
