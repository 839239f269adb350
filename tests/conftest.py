"""Settings of every test: checked array shapes and types, eight CPU devices, no accelerator."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # TensorFlow and jax both look for one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from jaxtyping import install_import_hook

# Meshes of up to eight devices are tested on one machine.
jax.config.update("jax_num_cpu_devices", 8)

# Every annotation of the package is checked at each call; must come before the package's first import.
install_import_hook("imagen_jax", "beartype.beartype")
