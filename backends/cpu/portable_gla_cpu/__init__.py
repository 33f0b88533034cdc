"""The CPU backend: C kernels for AVX-512, AVX2 and NEON, chosen at run time; see ``README.md`` beside this folder."""
