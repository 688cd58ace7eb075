"""Network interfaces, by kind."""
