"""A folder tree as an exactly-once store."""
