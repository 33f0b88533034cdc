"""Which tokens a rank holds, which documents cross its ends, and who imports what: no process needed."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from portable_gla.distributed import sharding
from portable_gla.distributed.order import lengths_of_runs, runs_of_ranks

ROOT = Path(__file__).resolve().parents[3] / "portable_gla"


def test_importing_the_library_leaves_this_part_alone():
    code = "import sys, portable_gla; print('portable_gla.distributed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "False"


@pytest.mark.parametrize("path", sorted(path for path in ROOT.rglob("*.py") if "distributed" not in path.parts),
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_part_imports_torch_distributed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        assert not any(name.startswith("torch.distributed") for name in names)


def test_orders():
    assert runs_of_ranks("contiguous", 3) == ((0,), (1,), (2,))
    assert runs_of_ranks("head-tail", 3) == ((0, 5), (1, 4), (2, 3))
    assert runs_of_ranks([[2], [], [1, 0]], 3) == ((2,), (), (1, 0))


@pytest.mark.parametrize("order, kind, said", [
    ("zigzag", ValueError, "expected one of"),
    (3, TypeError, "the runs of each rank"),
    ([[0], [1]], ValueError, "runs of 3 ranks, got 2"),
    ([[0], [1], [1]], ValueError, "each of the runs 0 to 2 once"),
    ([[0], [1], [3]], ValueError, "each of the runs 0 to 2 once"),
    ([[0], [1.0], [2]], TypeError, "expected integers"),
])
def test_what_is_no_order_is_refused(order, kind, said):
    with pytest.raises(kind, match=said):
        runs_of_ranks(order, 3)


def test_lengths_of_runs():
    assert lengths_of_runs(None, 2, 7) == (4, 3)
    assert lengths_of_runs(None, 0, 0) == ()
    assert lengths_of_runs([0, 7], 2, 7) == (0, 7)
    for runs, tokens in (([7], 7), ([3, 3], 7), ([8, -1], 7)):
        with pytest.raises(ValueError, match="runs: expected 2 lengths"):
            lengths_of_runs(runs, 2, tokens)
    with pytest.raises(TypeError, match="runs: expected integers"):
        lengths_of_runs([3.0, 4], 2, 7)
    with pytest.raises(ValueError, match="has 7 tokens and no run"):
        lengths_of_runs(None, 0, 7)


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("ends", list(itertools.combinations_with_replacement(range(7), 2)))
def test_every_token_is_in_one_piece_and_states_cross_inside_documents_only(ends, reverse):
    cu_seqlens = (0, *ends, 6)
    for cuts in itertools.combinations_with_replacement(range(7), 2):
        lengths = [[b - a] for a, b in itertools.pairwise((0, *cuts, 6))]
        found = sharding.build(1, lengths, runs_of_ranks("contiguous", 3), 1, cu_seqlens, reverse, {})
        assert [run.rank for run in found.runs] == ([2, 1, 0] if reverse else [0, 1, 2])
        document = {token: n for n, (a, b) in enumerate(itertools.pairwise(cu_seqlens)) for token in range(a, b)}
        starts = dict(enumerate((0, *cuts)))
        seen = []
        for run in found.runs:
            for piece in run.pieces:
                tokens = [starts[run.rank] + token for token in range(piece.start, piece.stop)]
                assert tokens and {document[token] for token in tokens} == {piece.document}
                seen += tokens[::-1] if reverse else tokens
            before, after = starts[run.rank] - 1, starts[run.rank] + run.length
            left = before >= 0 and after <= 6 and document.get(before) == document.get(before + 1) is not None
            right = after - 1 >= 0 and document.get(after - 1) == document.get(after) is not None
            assert (run.enters, run.leaves) == ((right, left) if reverse else (left, right))
        assert seen == (list(range(6))[::-1] if reverse else list(range(6)))
        assert found.empty_documents() == [n for n, (a, b) in enumerate(itertools.pairwise(cu_seqlens)) if a == b]
