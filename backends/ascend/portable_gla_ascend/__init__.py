"""The Ascend backend: Triton-Ascend kernels on Huawei NPUs, or PyTorch operations where Triton-Ascend is missing."""
