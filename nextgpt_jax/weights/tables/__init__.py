"""One file a kind of checkpoint: which PyTorch tensor fills which parameter."""
