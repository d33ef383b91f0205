"""From results to records, and to the columns of tables."""
