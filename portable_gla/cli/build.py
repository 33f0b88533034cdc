"""``portable-gla build``: compile a backend's kernels ahead of time, for machines that must not compile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from portable_gla import registry
from portable_gla.backend import Prebuilds
from portable_gla.cli import options, output
from portable_gla.errors import KernelError


def build(
    backend: Annotated[str, typer.Option(metavar="NAME", help="The backend whose kernels are compiled.")],
    target: Annotated[list[str] | None, typer.Option(
        metavar="ARCH", help="An architecture, such as sm_70. Repeatable. Default: all that the backend compiles "
                             "for.")] = None,
    cache: Annotated[Path | None, typer.Option(
        "--cache", "--out", metavar="FOLDER",
        help="Where to put what is compiled: the folder that PORTABLE_GLA_CACHE names on the machine that uses it. "
             "Default: this machine's own cache.")] = None,
    json: options.Json = False,
) -> None:
    """Compile every kernel of a backend into a cache, without a device: what is there already is not compiled again.

    For machines that must not compile, or have no compiler: copy the folder there and set PORTABLE_GLA_CACHE to it.

    Exit status: 0 if all is built, 1 if a kernel cannot be, 2 for a wrong argument.

    Example: portable-gla build --backend volta --target sm_70 --cache kernels
    """
    options.known_backends([backend])
    if backend in registry.failures():
        raise typer.BadParameter(f"{backend} failed to load: {registry.failures()[backend].text}",
                                 param_hint="--backend")
    found = registry.get(backend)
    if not isinstance(found, Prebuilds):
        raise typer.BadParameter(f"expected one of {', '.join(_able()) or 'none of those installed'}, got {backend!r}: "
                                 "it has no kernels to compile ahead of time", param_hint="--backend")
    targets = list(dict.fromkeys(target or found.prebuild_targets))
    unknown = [name for name in targets if name not in found.prebuild_targets]
    if unknown:
        raise typer.BadParameter(f"expected one of {', '.join(found.prebuild_targets)}, got {unknown[0]!r}",
                                 param_hint="--target")
    if cache is not None and cache.exists() and not cache.is_dir():
        raise typer.BadParameter(f"expected a folder, got the file {str(cache)!r}", param_hint="--cache")
    rows = []
    try:
        for name in targets:
            rows.append(_build(found, name, cache))
            if not json:
                output.say(_line(rows[-1]))
    except KernelError as error:
        output.tell(str(error))
        raise typer.Exit(1) from error
    if json:
        output.write_json({"ok": True, "backend": backend, "targets": rows})


def _build(backend: Prebuilds, target: str, cache: Path | None) -> dict[str, object]:
    start, compiled, size, folder = time.perf_counter(), 0, 0, None
    total, builds = backend.prebuild(target, cache)
    with output.progress() as progress:
        for built in progress.track(builds, total=total, description=target):
            compiled += built.compiled
            if built.path is None or not built.path.is_file():
                raise KernelError(f"{built.name} is compiled, and there is no place to keep it: expected a folder that "
                                  "can be written to, from --cache or PORTABLE_GLA_CACHE")
            size, folder = size + built.path.stat().st_size, built.path.parents[1]
    return {"target": target, "kernels": total, "compiled": compiled, "bytes": size,
            "folder": None if folder is None else str(folder), "seconds": round(time.perf_counter() - start, 1)}


def _line(row: dict[str, object]) -> str:
    return (f"{row['target']}: {row['kernels']} kernels, {row['compiled']} compiled now, {row['bytes']:,} bytes in "
            f"{row['folder']}, {row['seconds']} s")


def _able() -> list[str]:
    return [name for name in registry.handles() if isinstance(registry.get(name), Prebuilds)]
