"""The eager backend: PyTorch operations alone, on any device that PyTorch has."""
