"""The disk and the bucket."""
