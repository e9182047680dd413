"""Prepared data: embeddings of media and captions, computed once and written to shards (data/prepared.py)."""
