"""Text in: sources, splits, the mixture over languages, packing into blocks, and the audit of all of it."""
