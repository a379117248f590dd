"""Sources: the adapters that bring in what the world says of domains."""
