"""Kernels for language-model inference on NVIDIA GPUs and TPUs, usable without jaxinfer.

Each operation is a folder: `__init__` holds the public function with its shapes, checks and
dispatch, `reference` is the plain specification, and the other files are backends with the same
signature. Imports jax only.
"""
