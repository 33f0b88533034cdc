"""Keeps what an attention call saves for its backward pass in host memory; see :func:`offload_states`."""

from portable_gla.offload.context import OffloadStates, offload_states, release_host_memory

__all__ = ["OffloadStates", "offload_states", "release_host_memory"]
