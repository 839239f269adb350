"""Distances and scores of sets of features, in NumPy float64; the networks that make features are in evals/features.

frechet_distance(generated, reference)      FID on Inception's pool, FD-DINOv2 on DINOv2's features
kernel_distance(generated, reference)       KID
inception_score(logits)
precision_recall(generated, reference, k=3), density_coverage(generated, reference)
cmmd(generated, reference)                  on CLIP's image embeddings
clip_score, r_precision                     images against their captions
vendi_score(features)                       diversity
bootstrap_interval(metric, *arrays)         how far a figure depends on the examples drawn
"""

from imagen_jax.evals.metrics.bootstrap import Interval, bootstrap_interval
from imagen_jax.evals.metrics.captions import clip_score, r_precision
from imagen_jax.evals.metrics.frechet import frechet_distance, frechet_distance_infinity
from imagen_jax.evals.metrics.inputs import Score
from imagen_jax.evals.metrics.kernels import cmmd, kernel_distance
from imagen_jax.evals.metrics.manifold import DensityCoverage, PrecisionRecall, density_coverage, precision_recall
from imagen_jax.evals.metrics.spread import inception_score, vendi_score
from imagen_jax.evals.metrics.statistics import FeatureStatistics

__all__ = [
    "DensityCoverage",
    "FeatureStatistics",
    "Interval",
    "PrecisionRecall",
    "Score",
    "bootstrap_interval",
    "clip_score",
    "cmmd",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_infinity",
    "inception_score",
    "kernel_distance",
    "precision_recall",
    "r_precision",
    "vendi_score",
]
