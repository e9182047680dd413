"""PyTorch checkpoints to Flax NNX state and back: tables of rules, and one engine that reads, checks and writes."""
