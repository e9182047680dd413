"""The trained projections between encoders, language model and decoders."""
