"""The reader of ``xfails.txt``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))
import debts


def test_patterns_and_reasons(tmp_path):
    path = tmp_path / "xfails.txt"
    path.write_text("# a note\n\ntest_check[within_budget-tokens-*]  # slow: issue 4\n")
    (debt,) = debts.read(path)
    assert debt.reason == "slow: issue 4"
    assert debt.where.endswith("xfails.txt:3")
    assert debt.matches("test_check[within_budget-tokens-1000]")
    assert not debt.matches("test_check[within_budget-dims-1x1]")
    assert not debt.matches("a test_check[within_budget-tokens-1]")


def test_a_debt_needs_a_reason(tmp_path):
    path = tmp_path / "xfails.txt"
    path.write_text("test_check[*]\n")
    with pytest.raises(ValueError, match="needs a reason"):
        debts.read(path)


def test_no_file_is_no_debt(tmp_path):
    assert debts.read(tmp_path / "xfails.txt") == []
