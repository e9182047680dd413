"""Ahead-of-time estimates of memory, FLOPs and communication for a target topology."""
