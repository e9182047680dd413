"""Experiment configs: each file's `get_config(variant)` returns an ExperimentConfig."""
