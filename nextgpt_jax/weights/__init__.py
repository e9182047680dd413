"""Weights: PyTorch checkpoints to parameters and back, and the parts of a system into one model."""
