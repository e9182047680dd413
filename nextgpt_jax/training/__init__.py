"""Training: stages, losses, optimizer and the loop."""
