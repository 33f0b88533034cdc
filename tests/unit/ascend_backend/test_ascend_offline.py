"""The offline check's parts that need no compiler: what compilers say, the child's protocol, what is compiled once."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from portable_gla_ascend import offline, socs
from portable_gla_ascend.offline import child, dump, environment, lowering, planning, recording, store

KEPT = '''
module attributes {dlti.target_system_spec = #dlti.target_system_spec<"NPU" : #hacc.target_device_spec<
  #dlti.dl_entry<"CUBE_CORE_COUNT", 24 : i32>, #dlti.dl_entry<"UB_SIZE", 1572864 : i32>,
  #dlti.dl_entry<"L1_SIZE", 4194304 : i32>, #dlti.dl_entry<"L0C_SIZE", 1048576 : i32>>>} {
  func.func @toy_infer_workspace_shape_function() -> index {
    %c49152 = arith.constant 49152 : index
    return %c49152 : index
  }
  func.func @toy_mix_aic(%arg0: i64) {
    %c8192_i64 = arith.constant 8192 : i64
    %c0_i64 = arith.constant 0 : i64
    %0 = hivm.hir.pointer_cast(%c8192_i64) : memref<4x4x16x16xbf16, #hivm.address_space<cbuf>>
    %1 = hivm.hir.pointer_cast(%c0_i64, %c8192_i64) : memref<4x4x16x16xf32, #hivm.address_space<cc>>
  }
  func.func @toy_mix_aiv(%arg0: i64) {
    %0 = llvm.mlir.constant(1024 : i64) : i64
    %1 = llvm.mlir.constant(0 : i64) : i64
    %2 = hivm.hir.pointer_cast(%0) : memref<64x256x1xi1, #hivm.address_space<ub>>
    %3 = hivm.hir.pointer_cast(%1) : memref<64x8xf32, strided<[72, 1]>, #hivm.address_space<ub>>
    %4 = hivm.hir.pointer_cast(%c0_i64) : memref<64x64xf32, #hivm.address_space<ub>>
    %5 = hivm.hir.pointer_cast(%1) : memref<?x8xf32, #hivm.address_space<ub>>
  }
}
'''
OVERFLOW = '''[NOTE] Ub overflow detected; automatically set enable-auto-multi-buffer to false and retrying compilation.
loc("/tmp/k.mlir":3:3): error: ub overflow, requires 2105344 bits while 1572864 bits available! (possible reason: ...)
loc("/tmp/k.mlir":3:3): error: ub overflow, requires 1900544 bits while 1572864 bits available! (possible reason: ...)
[ERROR] Failed to run BiShengHIR pipeline
'''
ECHO = '''
import json, os, sys, time
if "late" in sys.argv: time.sleep(30)
print(json.dumps({"ready": "0"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if request["do"] == "babble":
        print("not JSON", flush=True)
    elif request["do"] == "sleep":
        time.sleep(30)
    else:
        found = {"path": os.environ["PYTHONPATH"], "pid": os.getpid(), "text": request["do"] * 100000}
        print(json.dumps(found), flush=True)
'''


@pytest.fixture
def echo(tmp_path: Path):
    """Make children that answer as told."""
    script, made = tmp_path / "echo.py", []
    script.write_text(ECHO, encoding="utf-8")

    def start(*arguments: str) -> lowering.Child:
        made.append(lowering.Child([sys.executable, str(script), *arguments], (Path("/one"), Path("/two"))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_what_was_allotted_is_the_largest_end_of_a_buffer() -> None:
    assert dump.used(KEPT) == {
        "cbuf": 8192 + 8192, "cc": 8192 + 16384,  # of two addresses the later
        "ub": 63 * 72 * 4 + 8 * 4}  # a strided one reaches further than its elements; bits: 1024 + 2048 bytes
    assert dump.limits(KEPT) == {"ub": 192 * 1024, "cc": 128 * 1024, "cbuf": 512 * 1024}
    assert dump.workspace(KEPT) == 49152
    assert dump.used("") == dump.limits("") == {} and dump.workspace("") == 0


def test_names_of_constants_are_a_functions_own() -> None:
    text = KEPT.replace("llvm.mlir.constant(1024 : i64) : i64", "llvm.mlir.constant(65536 : i64) : i64")
    assert dump.used(text)["ub"] == 65536 + 2048 and dump.used(text)["cc"] == 8192 + 16384


def test_an_overflow_is_told_with_the_last_trys_figures() -> None:
    assert dump.overflows(OVERFLOW) == [dump.Overflow("ub", 237568, 196608)]
    assert dump.error(OVERFLOW, 1) == "unified buffer overflow: needs 232 KiB, of 192"
    both = OVERFLOW + "error: cc overflow, requires 2097152 bits while 1048576 bits available!\n"
    assert dump.error(both, 1).endswith("; L0C overflow: needs 256 KiB, of 128")


@pytest.mark.parametrize(("said", "words"), [
    ('loc("a":1:2): error: operands must have same rank\n[ERROR] Failed to run BiShengIR pipeline\n',
     "error: operands must have same rank"),
    ("[ERROR] Failed to run BiShengIR pipeline\n", "[ERROR] Failed to run BiShengIR pipeline"),
    ("", "ended with -11 and said nothing"),
])
def test_other_errors_are_told_in_a_line(said: str, words: str) -> None:
    assert words in dump.error(said, -11)


LOWERED = """
  %1 = linalg.matmul {input_precison = "ieee"} ins(%a, %b : tensor<64x64xf32>) outs(%c) -> tensor<64x64xf32>
  %2 = linalg.matmul ins(%d, %e : tensor<64x64xbf16>) outs(%1 : tensor<64x64xf32>) -> tensor<64x64xf32>
"""
PRODUCTS = """
    call @mma_tile_float_to_float(%1, %2) : (memref<?xf32>) -> ()
        func.call @mma_tile_bfloat16_t_to_float_tb(%1, %2) : (memref<?xbf16>) -> ()
  func.func private @mma_tile_float_to_float(memref<?xf32>)
"""
UNPLANNED = "    %alloc = memref.alloc() {alignment = 64 : i64} : memref<32x128xf32, #hivm.address_space<ub>>\n"


@pytest.mark.parametrize(("kept", "words"), [
    (PRODUCTS, ""),
    (PRODUCTS + "%alloc = memref.alloc() : memref<4xf32>\n", ""),  # not of a core's memory
    (PRODUCTS.replace("call @mma_tile_float", "call @other"), "miscompiled: 1 of 2 products are left"),
    (PRODUCTS + UNPLANNED, "miscompiled: a buffer without an address in unified buffer"),
])
def test_what_a_compiler_loses_is_an_error(kept: str, words: str) -> None:
    assert dump.lost(LOWERED, kept) == words


def test_whether_both_vector_cores_work() -> None:
    assert dump.split("") and not dump.split("[hivm-bind-sub-block] revert k_mix_aiv: preparation failed")


def test_a_child_answers_and_is_started_once(echo) -> None:
    one = echo()
    first, second = one.ask({"do": "a"}), one.ask({"do": "b"})
    assert first["path"] == "/one:/two" and first["pid"] == second["pid"] and second["text"] == "b" * 100000


@pytest.mark.parametrize(("do", "words"), [("die", "ended: last words"), ("babble", "not JSON")])
def test_a_child_that_dies_says_why_and_is_started_again(echo, do: str, words: str) -> None:
    one = echo()
    before = one.ask({"do": "a"})["pid"]
    with pytest.raises(lowering.ChildDied, match=words):
        one.ask({"do": do})
    assert one.ask({"do": "a"})["pid"] != before


def test_a_child_that_takes_too_long_is_ended(echo) -> None:
    with pytest.raises(lowering.ChildDied, match=r"no answer in 0\.2 s"):
        echo("late").ask({"do": "a"}, seconds=0.2)
    one = echo()
    one.ask({"do": "a"})
    with pytest.raises(lowering.ChildDied, match=r"no answer in 0\.2 s"):
        one.ask({"do": "sleep"}, seconds=0.2)


def test_a_child_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    one = lowering.Child([sys.executable, str(tmp_path / "nosuch.py")])
    with pytest.raises(lowering.ChildDied, match="No such file"):
        one.ask({})


def test_the_script_answers_in_order_and_an_error_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")

    def lower(request):
        if request["kernel"] == "bad":
            raise ValueError("no such kernel")
        return {"text": request["kernel"]}

    monkeypatch.setattr(child, "lower", lower)
    answers = io.StringIO()
    child.serve(io.StringIO('{"kernel": "bad"}\n{"kernel": "good"}\nnot JSON\n'), answers)
    ready, bad, good, wrong = (json.loads(line) for line in answers.getvalue().splitlines())
    assert "ready" in ready and bad == {"error": "ValueError: no such kernel"} and good == {"text": "good"}
    assert "JSONDecodeError" in wrong["error"]


def test_the_script_needs_only_triton() -> None:
    """Everything else that it imports is Python's own, so the compilers' environment can run it."""
    names = {line.split()[1].split(".")[0] for line in lowering.SCRIPT.read_text(encoding="utf-8").splitlines()
             if line.strip().startswith(("import ", "from "))}
    assert names - {"triton", "__future__"} <= set(sys.stdlib_module_names)


def test_documents_are_made_once(tmp_path: Path) -> None:
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"made": len(calls)}

    kept = store.Store(tmp_path)
    assert kept.get("a", make) == kept.get("a", make) == {"made": 1}
    assert kept.get("b", lambda: {"transient": True}) and kept.get("b", make) == {"made": 2}
    (tmp_path / "a.json.gz").write_bytes(b"torn")
    assert kept.get("a", make) == {"made": 3}


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTABLE_GLA_CACHE", "/a")
    assert store.folder() == Path("/a/ascend")
    monkeypatch.delenv("PORTABLE_GLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert store.folder() == Path("/b/portable_gla/ascend")


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "python"
    wrong.write_text("#!/bin/sh\necho no room left >&2\nexit 1\n", encoding="utf-8")
    wrong.chmod(0o755)
    with pytest.raises(environment.MissingEnvironment, match=r"venv.*no room left"):
        environment.make(str(wrong), tmp_path)
    monkeypatch.setattr(environment.sys, "version_info", (3, 14, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(environment.MissingEnvironment, match=r"3\.14.*no python3\.11 or python3\.10"):
        environment.python()


def test_flags_are_those_that_triton_ascend_gives() -> None:
    assert planning.arguments("Ascend910B2", {}) == [
        "--target=Ascend910B2", "--enable-auto-multi-buffer=True", "--enable-auto-bind-sub-block=True",
        "--enable-hfusion-compile=true", "--enable-hivm-compile=true", "--enable-triton-kernel-compile=true"]
    fifth = planning.arguments("Ascend950PR_9599", {"multibuffer": False, "compile_on_910_95": True, "num_warps": 4})
    assert "--enable-auto-multi-buffer=False" in fifth and "--enable-hivm-compile=true" not in fifth
    assert [planning.fifth(name) for name in offline.TARGETS.values()] == [False, False, False, True]


class _Parameter:
    def __init__(self, name: str) -> None:
        self.name, self.is_constexpr, self.do_not_specialize = name, name == "SIZE", name.startswith("any")


class _Function:
    def __init__(self) -> None:
        self.params = [_Parameter(name) for name in inspect.signature(self.fn).parameters]

    @staticmethod
    def fn(x, y, n, m, one, any_one, any_16, scale, SIZE):
        pass


class _Kernels:
    toy = _Function()


def test_a_launch_is_written_down_as_triton_types_it() -> None:
    recorder = recording.Recorder(_Kernels())
    recorder.toy[(8,)](torch.empty(4, dtype=torch.bfloat16, device="meta"), None, 4096, 2**40 + 1, 1, 1, 16, 0.5,
                       SIZE=64, multibuffer=False)
    assert recorder.launches == [recording.Launch(
        "toy", {"x": "*bf16", "n": "i32", "m": "i64", "any_one": "i32", "any_16": "i32", "scale": "fp32"},
        {"y": None, "one": 1, "SIZE": 64}, ["x", "n"], {"multibuffer": False})]
    with pytest.raises(TypeError, match="scale"):
        recorder.toy[(8,)](None, None, 1, 2, 3, 4, 5, SIZE=64)


def test_chips_are_as_the_backend_knows_them() -> None:
    assert set(offline.TARGETS) == {"Ascend910B2", "Ascend910B4", "Ascend910_9391", "Ascend950"}
    for target, name in offline.TARGETS.items():
        assert dataclasses.replace(offline.soc(target), name=name) == socs.of(name)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch):
    """Launches of two kernels, of which one does not see V."""

    def record(kernels, soc, configuration):
        def launch(name, **constants):
            return recording.Launch(name, {"x": "*bf16"}, constants, ["x"], {})

        key_dim = configuration["K"]
        return [launch("outputs", **configuration), launch("depths", K=key_dim),
                launch("depths", K=key_dim, LAST=True), launch("depths", K=key_dim)]

    monkeypatch.setattr(recording, "record", record)
    offline._recorded.cache_clear()
    yield
    offline._recorded.cache_clear()


def test_sizes_that_launch_the_same_are_one_build(recorded) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    found = list(offline.builds(["Ascend910B2", "Ascend950"]))
    mine = [build for build in found if build.target == "Ascend910B2"]
    assert len(found) == 2 * len(mine)
    pairs = [f"{key_dim}x{value_dim}" for key_dim, value_dim in recording.SIZES]
    for kernel, served in (("outputs", pairs), ("depths", ["64x64 64x512", "128x128", "256x256", "512x512 512x64"])):
        assert [build.configuration for build in mine if build.kernel == kernel] == [
            {**kind, "K x V": sizes} for kind, _ in recording.kinds(False) for sizes in served]


def test_every_kind_of_call_is_compiled_at_every_size() -> None:
    kinds = list(recording.kinds(False))
    assert len({tuple(kind.values()) for kind, _ in kinds}) == len(kinds) == 3 * 4 * 3
    for _, sizes in kinds:
        assert {(64, 64), (128, 128), (256, 256), (512, 512)} <= set(sizes)


def test_one_build_serves_every_size_with_the_same_blocks() -> None:
    """K, V and all other whole numbers but the last dimensions' strides are any; the blocks are what is compiled."""
    pytest.importorskip("triton", reason="Triton is not installed")
    for kernel in vars(offline.kernels()).values():
        for parameter in getattr(kernel, "params", ()):
            if parameter.name in ("K", "V", "tokens", "heads", "items", "q_token", "k_group", "state_k", "slots_row"):
                assert not parameter.is_constexpr and parameter.do_not_specialize, parameter.name
            elif parameter.name in ("state_v", "out_v", "q"):
                assert not parameter.do_not_specialize, parameter.name
    soc = socs.of("Ascend910B2")
    call = {"dtype": "bf16", "gate": "channel", "features": "bonus"}
    first, second = (recording.record(offline.kernels(), soc, {**call, "K": k, "V": v}, ("forward", "backward"))
                     for k, v in ((128, 128), (500, 260)))
    assert first == second and {one.kernel for one in first} == {"sweep", "outputs", "sweep_both", "gradients"}


def test_the_worst_of_a_builds_launches_is_its_row(recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    asked = []

    def compile_launch(launch, target):
        asked.append(launch)
        size = 200 if launch.constants.get("LAST") else 100
        return {"used": {"ub": size * 1024, "cc": 65536}, "limits": {"ub": 196608, "cc": 131072, "cbuf": 524288},
                "workspace": 2048, "split": True, "seconds": 1.0,
                "error": "unified buffer overflow: needs 200 KiB, of 192" if size > 192 else ""}

    monkeypatch.setattr(offline, "compile_launch", compile_launch)
    configuration = {"dtype": "bf16", "gate": "channel", "features": "all", "K x V": "64x64 64x512"}
    build = offline.Build("depths", "Ascend910B2", configuration)
    found = offline.compile_one(build)
    assert len(asked) == 2  # of three, one twice
    assert found.error and found.shared == 200 * 1024 and found.shared_limit == 196608 and found.seconds == 2.0
    assert found.extra == {"L0C": "64 of 128 KiB", "L1": "0 of 512 KiB", "workspace": "2 KiB", "vector cores": "both",
                           "key": offline.key(build)}
    assert offline.key(build) != offline.key(offline.Build("outputs", "Ascend910B2", configuration))
    with pytest.raises(ValueError, match="not launched"):
        offline.compile_one(offline.Build("nosuch", "Ascend910B2", configuration))


def test_planning_has_the_limit_that_is_asked_for(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        def ask(self, _):
            return {"text": "module {}"}

    def plan(_, text, target, options, seconds):
        return {"used": {}, "limits": {}, "workspace": 0, "split": True, "seconds": 0.0, "error": f"after {seconds:g}"}

    monkeypatch.setenv("PORTABLE_GLA_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "ensure", lambda: None)
    monkeypatch.setattr(offline, "compiler", lambda: "none")
    monkeypatch.setattr(offline, "_child", lambda *_: Child())
    monkeypatch.setattr(planning, "chip", lambda *_: "")
    monkeypatch.setattr(planning, "plan", plan)
    found = offline.compile_launch(recording.Launch("sweep", {}, {}, [], {}), "Ascend910B2", module="toys", limit=7.0)
    assert found["error"] == "after 7"
