"""Evaluation: the paper's tables, by one command (docs/evaluation.md)."""
