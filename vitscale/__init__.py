"""vitscale: weakly supervised ViT pretraining and one multi-task visual embedding, on JAX."""

__version__ = "0.1.0"
