"""Item indexes: interests in, the best items and their scores out."""
