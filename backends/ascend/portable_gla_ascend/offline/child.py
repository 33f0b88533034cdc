"""Lowers kernels to Linalg, in an environment that has Triton-Ascend; run as a script, it needs nothing else of ours.

A request is a line of JSON on stdin, the answer one on stdout, in order. The first line says that it is ready.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any, TextIO

TIMES = 3
"""How often lowering is tried: of any kernel with masks it crashes now and then, one time in fifty or so."""


def lower(request: dict[str, Any]) -> dict[str, Any]:
    """Lower one kernel as a launch with these types and constants would."""
    from triton._C.libtriton import ir
    from triton.backends.ascend import compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
    target = GPUTarget("npu", "", 0)  # a chip is named later, to bishengir-compile
    backend = make_backend(target)
    options = backend.parse_options(dict(request["options"]))
    hints = {index: 16 for index, parameter in enumerate(kernel.params) if parameter.name in request["aligned"]}
    source = ASTSource(kernel, request["signature"], request["constants"],
                       compiler.AscendAttrsDescriptor.from_hints(hints))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    about = {"target": target, **options.__dict__}
    module = source.make_ir(options, backend.get_codegen_implementation(), backend.get_module_map(), context)
    module = compiler.make_ttir(module, about, options)
    for left in reversed(range(TIMES)):
        try:
            text = compiler.ttir_to_linalg(module, about, options, named_ops=True)
        except subprocess.CalledProcessError as error:
            if error.returncode >= 0 or not left:
                raise
        else:
            break
    text, about = compiler._parse_linalg_metadata(text, about)
    return {"text": text, "mode": about["mix_mode"]}


def answer(line: str) -> dict[str, Any]:
    """Answer one request; what goes wrong is an answer too."""
    try:
        return lower(json.loads(line))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else str(error.stderr)
        return {"error": said[:20000], **({"transient": True} if error.returncode < 0 else {})}
    except Exception as error:  # noqa: BLE001 - a compiler raises what it likes
        return {"error": f"{type(error).__name__}: {error}"[-20000:]}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the other end closes."""
    import triton

    print(json.dumps({"ready": triton.__version__}), file=answers, flush=True)
    for line in requests:
        print(json.dumps(answer(line)), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its names are not for others
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print is not an answer
    serve(sys.stdin, channel)
