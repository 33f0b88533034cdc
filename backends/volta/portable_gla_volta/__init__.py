"""CUDA C++ kernels for Volta and Turing, and what builds, launches and checks them."""
