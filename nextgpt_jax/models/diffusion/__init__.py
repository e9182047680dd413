"""Tier 3: latent diffusion. Text encoders, UNets, autoencoders, samplers, and the models composed of them."""
