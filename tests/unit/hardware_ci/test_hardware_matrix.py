"""The matrix says only what is so, and knows the devices that it lists."""

from __future__ import annotations

import pytest
import torch
import yaml

from hardware_ci import benchmark, floors, matrix, places, workflow
from portable_gla import devices
from portable_gla.problem import Device
from portable_gla.testing import cases

TO_COME = {"triton", "volta", "ascend"}  # named before their folders exist


def test_every_kind_of_device_has_a_row():
    assert {row.kind for row in matrix.rows() if not row.type} == set(devices.table())


def test_backends_are_those_that_exist_or_are_to_come():
    there = {path.name for path in places.BACKENDS.iterdir() if path.is_dir()}
    for row in matrix.rows():
        assert row.backend in there | TO_COME, row
        assert row.there == (row.backend in there)


def test_architectures_go_to_the_backend_that_is_made_for_them():
    for row in matrix.rows():
        if row.type:  # for a backend that is asked for, wherever it can run
            continue
        arch = devices.table()[row.kind].arch
        if arch in ("sm_70", "sm_75"):
            assert row.backend == "volta"
        elif arch.startswith(("sm_", "gfx")):
            assert row.backend == "triton"
        else:
            assert row.backend == {"npu": "ascend", "cpu": "cpu"}[devices.table()[row.kind].type]


@pytest.mark.parametrize(("device", "key"), [
    (Device("cuda", "h200", "sm_90"), "h200"),
    (Device("cuda", "a100-40gb", "sm_80"), "a100-40gb"),
    (Device("cpu", "cpu", "x86_64"), "cpu"),
    (Device("cpu", "cpu", "aarch64"), "cpu-arm"),
    (Device("cpu", "cpu", "riscv64"), None),
    (Device("cuda", "", "sm_120"), None),
])
def test_recognition(device, key):
    row = matrix.recognise(device)
    assert (row.key if row else None) == key


def test_a_backend_that_is_asked_for_may_have_a_row_of_its_own():
    h200, v100 = Device("cuda", "h200", "sm_90"), Device("cuda", "v100", "sm_70")
    assert matrix.recognise(h200, "volta").key == "volta-elsewhere"
    assert matrix.recognise(Device("cuda", "", "sm_120"), "volta").key == "volta-elsewhere"
    assert matrix.recognise(v100, "volta").key == "v100"
    assert matrix.recognise(h200, "triton").key == matrix.recognise(h200, "eager").key == "h200"
    assert matrix.recognise(Device("cpu", "cpu", "x86_64"), "volta").key == "cpu"


def test_volta_is_timed_in_what_it_has():
    """It has no bfloat16, and K and V end at 256: what it refuses would fail the run."""
    for row in matrix.rows():
        effort = benchmark.Effort("", torch.device("cpu"), dtype=getattr(torch, row.dtype), widest=row.widest)
        dims = {size for case in effort.chosen() for size in (case.key_dim, case.value_dim)}
        assert {case.dtype for case in effort.chosen()} == {torch.float16 if row.backend == "volta" else torch.bfloat16}
        assert max(dims) == (256 if row.widest else 512)
        assert bool(row.widest) == (row.key in ("v100", "t4"))


def test_a_job_sets_what_its_row_says():
    text = workflow.text()
    _, _, job = text.partition("device-volta-elsewhere:")
    job = job.partition("  device-")[0]
    assert 'env:\n      PORTABLE_GLA_VOLTA_ELSEWHERE: "1"\n' in job
    assert "hardware_ci run --jobs 4 --out results --backend volta --skip-bench\n" in job
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["device-v100"] and "env" not in jobs["device-v100"] and "container" not in jobs["device-v100"]


@pytest.mark.parametrize("key", ["910b", "910c", "950"])
def test_a_job_on_an_npu_has_its_image_and_installs_in_order(key):
    job = yaml.safe_load(workflow.text())["jobs"][f"device-{key}"]
    assert job["container"]["image"].startswith("quay.io/ascend/cann:")
    assert "--device /dev/davinci0" in job["container"]["options"]
    assert "-v /usr/local/Ascend/driver/lib64:/usr/local/Ascend/driver/lib64:ro" in job["container"]["options"]
    assert job["env"]["PORTABLE_GLA_STRICT"] == "1" and job["env"]["BASH_ENV"].endswith("set_env.sh")
    assert job["defaults"]["run"]["shell"] == "bash"
    commands = [step["run"] for step in job["steps"] if "run" in step]
    places = [next(i for i, command in enumerate(commands) if words in command) for words in (
        "venv", "install torch==", "install torch-npu==", "triton-ascend", "--editable .", "hardware_ci run")]
    assert places == sorted(places)
    torch, npu = (commands[place].split("==")[1].split()[0] for place in places[1:3])
    assert npu.partition(".post")[0] == torch  # torch-npu is compiled against that PyTorch


@pytest.mark.parametrize(("change", "words"), [
    ({"dtype": "float8"}, ["h200", "dtype", "'float8'"]),
    ({"type": "cuda"}, ["h200", "name"]),
    ({"kind": "h9000"}, ["h200", "kind", "'h9000'"]),
    ({"floors": "none such"}, ["h200", "floors", "'none such'"]),
    ({"bakcend": "triton"}, ["h200", "bakcend"]),
    ({"backend": ...}, ["h200", "backend"]),
])
def test_a_wrong_row_is_named(tmp_path, change, words):
    document = yaml.safe_load(places.MATRIX.read_text(encoding="utf-8"))
    document["devices"]["h200"].update(change)
    for field in [name for name, value in change.items() if value is ...]:
        del document["devices"]["h200"][field]
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(matrix.MatrixError) as caught:
        matrix.rows(path)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("change", [
    {"measure": "speed"}, {"each": None}, {"peer": "x"}, {"passes": ["sideways"]}, {"leat_bytes": 1}])
def test_a_wrong_floor_is_named(tmp_path, change):
    floor = {"name": "the floor", "measure": "copy", "each": 0.5} | change
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump({"floors": {"some": [floor]}, "devices": {}}), encoding="utf-8")
    with pytest.raises(matrix.MatrixError, match="floors some"):
        matrix.rows(path)


def test_each_floor_of_the_h200_is_held_against_something():
    row = next(row for row in matrix.rows() if row.key == "h200")
    assert {floor.measure for floor in row.floors} == set(matrix.MEASURES)
    for entry in floors.evaluate(row.floors, [], "triton"):
        assert entry["outcome"] == floors.UNMEASURED and entry["not_measured"], entry["name"]


def test_hardware_cases_are_for_timing_alone():
    hardware = cases.select("hardware")
    assert not set(hardware) & set(cases.CONFORMANCE)
    assert not any({"quick", "large", "bench"} & case.tags for case in hardware)
    for case in hardware:
        assert len({"shape", "sweep", "decode"} & case.tags) == 1
        if case.gate == "head":
            assert cases.named(case.name.removesuffix("-head")).gate == "channel"
    assert len([case for case in hardware if "sweep" in case.tags]) > 3
    assert [case for case in hardware if "decode" in case.tags and "brief" in case.tags]
