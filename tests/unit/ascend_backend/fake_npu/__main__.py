"""``python -m fake_npu MODULE ARGUMENTS``: run a module where there is a fake NPU, of the chip that FAKE_NPU names."""

from __future__ import annotations

import os
import runpy
import sys

import fake_npu

fake_npu.install(os.environ.get("FAKE_NPU", "Ascend910B2"))
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
