"""Compiles every kernel of a target into a cache ahead of time, for machines that must not compile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from portable_gla.backend import Built
from portable_gla_volta import configurations, nvrtc, sources, targets
from portable_gla_volta.cache import Cache, under
from portable_gla_volta.images import Images

_MOST_AT_ONCE = 8
TARGETS = (*targets.TARGETS, targets.PORTABLE)


def prebuild(target: str, folder: Path | None = None) -> tuple[int, Iterator[Built]]:
    """Return how many kernels a target has, and an iterator that compiles those which ``folder`` lacks.

    Raises
    ------
    ValueError
        For another target.
    portable_gla.errors.KernelError
        If no compiler for it is here, or a kernel does not compile.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    nvrtc.find(target)
    images = Images(Cache() if folder is None else Cache(under(folder)))
    kernels = list(dict.fromkeys(configurations.kernels(target)))

    def build() -> Iterator[Built]:
        # NVRTC compiles in several threads at once, each taking some hundred MB.
        with ThreadPoolExecutor(min(_MOST_AT_ONCE, os.cpu_count() or 1)) as pool:
            made = [pool.submit(images.get, kernel, target, ahead=True) for kernel in kernels]
            try:
                for kernel, future in zip(kernels, made, strict=True):
                    image = future.result()
                    yield Built(sources.title(kernel), image.path, image.compiled)
            finally:
                pool.shutdown(cancel_futures=True)

    return len(kernels), build()
