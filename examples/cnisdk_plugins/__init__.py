"""The reference CNI plugins, one module a type."""
