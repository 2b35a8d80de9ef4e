"""Clicks from Kafka through a Faust worker into the stores, and everything that names a topic."""
