"""Denoising networks: the base U-Net, the Efficient U-Net and their parts (Flax Linen)."""
