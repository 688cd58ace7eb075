"""Programs for operators: :mod:`.cnitool`, which attaches namespaces to networks, and :mod:`.cnisdk`, for the rest."""
