"""Kafka: topics as a source, one cluster as an exactly-once store."""
