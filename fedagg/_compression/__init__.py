"""Compressors: quantizers, sketches, rotations, sparsification, entropy coding."""
