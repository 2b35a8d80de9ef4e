"""MindStream's trainer: reads the click log, trains MIND, proves and publishes a model version."""
