"""Networks that turn images into features: Inception v3, CLIP, DINOv2; `imagen_jax.evals.load_extractor` loads them."""
