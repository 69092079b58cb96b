"""Shapes that architectures share: isotropic, pyramid, causal, encoder."""
