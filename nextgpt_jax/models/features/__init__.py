"""Networks whose features metrics compare: FID's Inception, CLIP, PANNs' Cnn14. Inference only."""
