"""Kernels of attention for TPUs."""
