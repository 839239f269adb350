"""Denoising networks: the base U-Net, the Efficient U-Net, the pixel transformer and their parts (Flax Linen)."""
