"""MindStream's engine: clicks in, fresh recall lists out."""
