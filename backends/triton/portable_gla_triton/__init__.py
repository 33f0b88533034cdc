"""Triton kernels for NVIDIA sm_80 and later, and AMD gfx90a and gfx942."""
