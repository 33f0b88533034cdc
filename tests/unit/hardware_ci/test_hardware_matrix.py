"""The matrix says only what is so, and knows the devices that it lists."""

from __future__ import annotations

import pytest
import yaml

from hardware_ci import floors, matrix, places
from portable_gla import devices
from portable_gla.problem import Device
from portable_gla.testing import cases

TO_COME = {"triton", "volta", "ascend"}  # named before their folders exist


def test_every_kind_of_device_has_a_row():
    assert {row.kind for row in matrix.rows()} == set(devices.table())


def test_backends_are_those_that_exist_or_are_to_come():
    there = {path.name for path in places.BACKENDS.iterdir() if path.is_dir()}
    for row in matrix.rows():
        assert row.backend in there | TO_COME, row
        assert row.there == (row.backend in there)


def test_architectures_go_to_the_backend_that_is_made_for_them():
    for row in matrix.rows():
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


@pytest.mark.parametrize(("change", "words"), [
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
