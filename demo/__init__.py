"""The synthetic marketplace, and what `make demo` asks of it."""
