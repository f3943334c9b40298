"""Weights on disk: found, checked, and read slice by slice into their final place."""

from jaxinfer.weights.huggingface import Loaded, describe, load, read_config
from jaxinfer.weights.safetensors_file import CheckpointError

__all__ = ["CheckpointError", "Loaded", "describe", "load", "read_config"]
