"""Counts the bytes of this backend's kernels and of flash-linear-attention's for Ascend, on one input, in one run.

Run under TRITON_INTERPRET=1 as ``beside_fla.py TOKENS DTYPE:SIZE...``, SIZE being K and V; prints a line of JSON for
each: for each library and pass ``total``, every element loaded or stored, and ``unique``, each address once for a
launch's loads and once for its stores. ``bonus`` is ours with a bonus, which theirs has not; both are with the 910's
tiles, ``950`` is ours with that chip's.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import torch
import triton.runtime.autotuner as autotuner
import triton.runtime.interpreter as interpreter

CHUNK = 64
Counts = dict[str, int]


class Counter:
    """Watches the interpreter's loads and stores."""

    def __init__(self) -> None:
        self._accesses: list[tuple[str, int, np.ndarray]] = []
        self.total = self.unique = 0
        for name, mask_at in (("create_masked_load", 1), ("create_masked_store", 2)):
            self._watch(name, mask_at)
        run = interpreter.GridExecutor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self._accesses.clear()
            found = run(executor, *args, **kwargs)
            self._launched()
            return found

        interpreter.GridExecutor.__call__ = counted

    def _watch(self, name: str, mask_at: int) -> None:
        original = getattr(interpreter.InterpreterBuilder, name)

        def watched(builder: Any, *args: Any, **kwargs: Any) -> Any:
            pointers, mask = args[0], args[mask_at]
            addresses = pointers.data.astype(np.uint64)
            if mask is not None:
                addresses = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
            size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
            self._accesses.append((name, size, addresses.ravel()))
            return original(builder, *args, **kwargs)

        setattr(interpreter.InterpreterBuilder, name, watched)

    def _launched(self) -> None:
        kinds: dict[tuple[str, int], list[np.ndarray]] = {}
        for name, size, addresses in self._accesses:
            kinds.setdefault((name, size), []).append(addresses)
        for (_, size), parts in kinds.items():
            joined = np.concatenate(parts)
            self.total += joined.size * size
            self.unique += np.unique(joined).size * size

    def take(self) -> Counts:
        """Return what was counted since the last time."""
        found = {"total": self.total, "unique": self.unique}
        self.total = self.unique = 0
        return found


def ours(counter: Counter, x: dict[str, torch.Tensor], bonus: bool = False, on: str = "910B2") -> dict[str, Counts]:
    """Run the kernels of this backend as they go on a chip."""
    from portable_gla_ascend import launch, socs
    from portable_gla_ascend.emulator import load

    from portable_gla.backend import Call

    soc = socs.of(f"Ascend{on}")
    assert soc is not None
    u = x["q"][0, 0].clone() if bonus else None
    call = Call(x["q"], x["k"], x["v"], x["g"], None, u, None, x["q"].shape[3] ** -0.5, False, False, {})
    launch.forward(load(), call, soc)
    forward = counter.take()
    launch.backward(load(), call, x["do"], None, soc)
    return {"forward": forward, "backward": counter.take()}


def theirs(counter: Counter, x: dict[str, torch.Tensor]) -> dict[str, Counts]:
    """Run flash-linear-attention's ``chunk_gla`` as it goes on an NPU: the functions that its NPU backend takes."""
    import fla.utils.ascend_ub_manager as chip

    chip.get_npu_properties = lambda *_: {"num_aicore": 24, "num_vectorcore": 48}
    import fla.ops.common.backends.triton_ascend.chunk_h as states
    import fla.ops.gla.backends.triton_ascend.chunk as chunk
    from fla.ops.utils import chunk_local_cumsum
    from fla.ops.utils.constant import RCP_LN2

    q, k, v, do, scale = x["q"], x["k"], x["v"], x["do"], x["q"].shape[3] ** -0.5
    swept: dict[str, Any] = {"g": None, "gv": None, "h0": None, "chunk_size": CHUNK, "state_v_first": False,
                             "cu_seqlens": None}

    def gates() -> torch.Tensor:
        found: torch.Tensor = chunk_local_cumsum(x["g"], CHUNK, scale=RCP_LN2)
        return found

    g = gates()
    h, _ = states.chunk_fwd_h_npu(k=k, v=v, gk=g, output_final_state=False, states_in_fp32=False, **swept)
    scores = chunk.chunk_gla_fwd_intra_gk_npu(q=q, k=k, g=g, scale=scale)
    chunk.chunk_gla_fwd_o_gk_npu(q=q, v=v, g=g, A=scores, h=h, scale=scale)
    forward = counter.take()
    g = gates()
    h, _ = states.chunk_fwd_h_npu(k=k, v=v, gk=g, output_final_state=False, states_in_fp32=True, **swept)
    dh, _ = states.chunk_bwd_dh_npu(q=q, k=k, v=v, gk=g, do=do, dht=None, scale=scale, states_in_fp32=True, **swept)
    chunk.chunk_gla_bwd_dv_npu(k=k, g=g, A=scores, do=do, dh=dh)
    dscores = chunk.chunk_gla_bwd_dA_npu(v=v, do=do, scale=scale)
    dq, dk = chunk.chunk_gla_bwd_dqk_intra_npu(q=q, k=k, g=g, dA=dscores)
    chunk.chunk_gla_bwd_dqkg_npu(q=q, k=k, v=v, h=h, g=g, do=do, dh=dh, dq=dq, dk=dk, scale=scale)
    return {"forward": forward, "backward": counter.take()}


def main() -> None:
    warnings.simplefilter("ignore")
    # Where theirs would be timed, the first configuration is taken: its tiles are the largest.
    autotuner.Autotuner._bench = lambda self, *_, config, **__: float(self.configs.index(config))
    tokens, counter = int(sys.argv[1]), Counter()
    for asked in sys.argv[2:]:
        name, size = asked.split(":")
        torch.manual_seed(0)
        x = {one: torch.randn(1, tokens, 1, int(size)).to(getattr(torch, name)) for one in ("q", "k", "v", "do")}
        x["g"] = (-torch.rand(1, tokens, 1, int(size)) / 10).to(x["q"].dtype)
        print(json.dumps({"ours": ours(counter, x), "bonus": ours(counter, x, bonus=True),
                          "950": ours(counter, x, on="950"), "theirs": theirs(counter, x)}))


if __name__ == "__main__":
    main()
