"""State on disk: behavior windows, one RocksDB per partition, and the lists a query service answers from."""
