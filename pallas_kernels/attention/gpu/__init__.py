"""Kernels of attention for Hopper GPUs."""
