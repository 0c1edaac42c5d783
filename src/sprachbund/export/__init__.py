"""Mixtures as native architectures and dense models (exporter, targets), their cards (card) and uploads (hub)."""
