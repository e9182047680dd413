"""Metrics: a file for each, or for each family (docs/evaluation.md)."""
