"""The device table and the naming of devices: no device needed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import portable_gla
from portable_gla import devices
from portable_gla.problem import Device, Problem

WANTED = ["a100", "h100", "h200", "b200", "v100", "t4", "mi250", "mi300", "910b", "910c", "950", "cpu"]


@pytest.mark.parametrize("kind", WANTED)
def test_the_table_has_every_device_of_the_project(kind):
    assert kind in devices.table()


@pytest.mark.parametrize("row", devices.table().values(), ids=lambda row: row.kind)
def test_every_row_has_positive_figures_and_a_source(row):
    links = {"host_gb_s", "link_gb_s"}
    figures = [getattr(row, field.name) for field in dataclasses.fields(row)
               if field.type == "float" and field.name not in links]
    assert len(figures) == 5
    assert all(isinstance(figure, (int, float)) and figure > 0 for figure in figures)
    assert (row.host_gb_s > 0) == (row.type != "cpu") and 0 <= row.link_gb_s < row.bandwidth_gb_s
    assert len(row.source) > 40 and any(character.isdigit() for character in row.source)
    assert row.vector_tflop_s <= row.float32_tflop_s <= row.matrix_tflop_s
    assert all(text == text.lower() for text in row.match)
    assert (row.type == "cpu") == (not row.match)


@pytest.mark.parametrize(("device_type", "name", "kind"), [
    ("cuda", "NVIDIA H200", "h200"),
    ("cuda", "NVIDIA H200 NVL", "h200"),
    ("cuda", "NVIDIA H100 80GB HBM3", "h100"),
    ("cuda", "NVIDIA H100 PCIe", "h100-pcie"),
    ("cuda", "NVIDIA H100 NVL", "h100-nvl"),
    ("cuda", "NVIDIA A100-SXM4-80GB", "a100"),
    ("cuda", "NVIDIA A100 80GB PCIe", "a100"),
    ("cuda", "NVIDIA A100-SXM4-40GB", "a100-40gb"),
    ("cuda", "NVIDIA B200", "b200"),
    ("cuda", "NVIDIA GB200", "b200"),
    ("cuda", "Tesla V100-SXM2-16GB", "v100"),
    ("cuda", "Tesla V100-PCIE-32GB", "v100"),
    ("cuda", "Tesla T4", "t4"),
    ("cuda", "AMD Instinct MI250X", "mi250"),
    ("cuda", "AMD Instinct MI250X/MI250", "mi250"),
    ("cuda", "AMD Instinct MI300X", "mi300"),
    ("npu", "Ascend910B2", "910b"),
    ("npu", "Ascend910B4", "910b"),
    ("npu", "Ascend910_9391", "910c"),
    ("npu", "Ascend950PR_9579", "950"),
    ("npu", "Ascend950DT_9589", "950dt"),
    ("cpu", "whatever", "cpu"),
    ("cuda", "NVIDIA RTX A1000", ""),  # no A100
    ("cuda", "NVIDIA T400", ""),  # no T4
    ("cuda", "NVIDIA H20", ""),
    ("npu", "Ascend910B", ""),  # without a digit after the B: the older 910A
    ("npu", "NVIDIA H200", ""),  # a name of another type of device
    ("mps", "mps", ""),
])
def test_a_device_is_recognised_by_the_name_that_pytorch_gives(device_type, name, kind):
    assert devices._kind(device_type, name) == kind


@pytest.mark.parametrize(("name", "kind", "arch"), [
    ("v100", "v100", "sm_70"), ("H200", "h200", "sm_90"), ("mi300x", "mi300", "gfx942"),
    ("910B4", "910b", "Ascend910B2"),
    ("b200", "b200", "sm_100"), ("T4", "t4", "sm_75"), ("mi250", "mi250", "gfx90a"),
])
def test_a_row_is_found_by_kind_or_by_a_name_that_matches(name, kind, arch):
    found = devices.named(name)
    assert found.kind == kind
    if not found.present:
        assert found.arch == arch


def test_the_cpu_by_name_is_the_cpu_that_is_here():
    assert devices.named("cpu") == devices.of(torch.device("cpu"))


@pytest.mark.parametrize("name", ["v101", "", "x", "a1000"])
def test_an_unknown_name_is_refused_with_the_names_that_are_known(name):
    with pytest.raises(ValueError, match=f"device: expected one of a100, .*cpu, got '{name}'"):
        devices.named(name)


def test_a_device_outside_the_table_still_has_a_plan_without_a_floor():
    unknown = Device("cuda", "", "sm_86", present=False)
    found = portable_gla.plan(Problem(tokens=4096, heads=4, key_dim=128, value_dim=128, training=True, device=unknown))
    assert found.backend is not None
    assert found.cost.floor_forward is None and found.cost.floor_backward is None
    assert "floor" not in str(found)


def test_the_cpu_is_always_present():
    assert devices.present()[0] == torch.device("cpu")
