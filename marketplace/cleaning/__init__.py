"""Raw to clean."""
