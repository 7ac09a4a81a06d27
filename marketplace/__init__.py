"""Five rooms, imports one way: files <- cleaning <- models <- retrieval <- service."""
