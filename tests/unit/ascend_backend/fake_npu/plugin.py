"""``pytest -p fake_npu.plugin``: the tests of this process see a fake NPU, of the chip that FAKE_NPU names."""

from __future__ import annotations

import os

import fake_npu

npu = fake_npu.install(os.environ.get("FAKE_NPU", "Ascend910B2"))
