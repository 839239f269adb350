"""Networks that turn images into features: Inception v3, CLIP, DINOv2; `load_extractor` loads them."""
