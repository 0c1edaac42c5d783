"""New languages for a model that exists: their paths, their text, their vocabulary."""
