"""Emulated launches leave Triton as it was, on one thread and on several."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the emulator runs Triton's kernels: Triton is not installed")

import triton
import triton.language as tl
from portable_gla_triton import emulator
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

KERNELS = emulator.load(Path(__file__).parent / "emulated_kernels")
ROWS, COLUMNS = 16, 16


def compiled(cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The PTX that a kernel using library functions becomes for sm_90, made anew."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    source = ASTSource(fn=KERNELS.standard.jit, signature={"x": "*fp32", "out": "*fp32", "ROWS": "constexpr",
                                                           "COLUMNS": "constexpr"},
                       constexprs={"ROWS": ROWS, "COLUMNS": COLUMNS})
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return "\n".join(line for line in text.splitlines() if "standard" in line or line.startswith("\t"))


def launched() -> torch.Tensor:
    x, out = torch.randn(ROWS, COLUMNS), torch.zeros(5, ROWS)
    KERNELS.standard[(1,)](x, out, ROWS=ROWS, COLUMNS=COLUMNS)
    torch.testing.assert_close(out[0], x.sum(1))
    return out


def language() -> dict[tuple[str, str], Any]:
    places = (tl, tl.core, tl.math, tl.standard, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    return {(place.__name__, name): value for place in places for name, value in vars(place).items()}


def test_compilation_before_between_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = []
    for i in range(3):
        texts.append(compiled(tmp_path / str(i), monkeypatch))
        launched()
    assert "ld.global" in texts[0]
    assert texts[0] == texts[1] == texts[2]


def test_the_language_is_left_alone() -> None:
    before = language()
    launched()
    with pytest.raises(emulator.EmulationError):
        KERNELS.block_condition[(1,)](torch.ones(4), torch.zeros(1), N=4)
    after = language()
    assert before.keys() == after.keys()
    assert [key for key, value in before.items() if after[key] is not value] == []


def test_functions_outside_of_a_launch_stay_triton_s_own() -> None:
    launched()
    with pytest.raises((ValueError, RuntimeError)):
        tl.zeros((4,), tl.float32)


def test_threads_launch_and_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def launches() -> None:
        try:
            while not done.is_set():
                launched()
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=launches) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        alone = compiled(tmp_path / "0", monkeypatch)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert alone == compiled(tmp_path / "1", monkeypatch)


def test_launches_of_several_threads_do_not_mix() -> None:
    right: list[bool] = []

    def launches() -> None:
        for _ in range(5):
            x, out = torch.randn(256), torch.zeros(256)
            KERNELS.copy[(32,)](x, out, 256, N=8)
            right.append(torch.equal(x, out))

    threads = [threading.Thread(target=launches) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert right == [True] * 20


def test_a_backward_pass_may_launch() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(x)
            KERNELS.shift[(1,)](x * 2, out, 0, N=16)
            return out

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            out = torch.empty_like(grad)
            KERNELS.shift[(1,)](grad.contiguous() * 2, out, 0, N=16)
            return out

    x = torch.randn(16, requires_grad=True)
    y = Doubled.apply(x)
    threads = [threading.Thread(target=lambda: torch.autograd.grad(y.sum(), x, retain_graph=True)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.tolist() == [2.0] * 16


def test_tensors_elsewhere_are_refused() -> None:
    with pytest.raises(emulator.EmulationError, match="CPU tensors"):
        KERNELS.copy[(1,)](torch.ones(4, device="meta"), torch.ones(4), 4, N=4)
