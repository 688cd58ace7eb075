"""Programs for operators: :mod:`.cnitool` attaches namespaces to networks, :mod:`.cnisdk` does everything else."""
