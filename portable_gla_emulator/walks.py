"""Kernels whose programs walk pieces of work: finds the walk, so that all pieces of all programs may run together.

The walk is a kernel's last statement, ``for item in range(tl.program_id(0), items, tl.num_programs(0))``, whose body
carries nothing from one turn to the next: no name that it binds is bound before it.
"""

from __future__ import annotations

import ast

START, STEP = "tl.program_id(0)", "tl.num_programs(0)"


def walk_of(function: ast.FunctionDef) -> ast.For | None:
    """Return the walk that ``function`` ends with, or None."""
    loop = function.body[-1]
    if not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Name) or loop.orelse:
        return None
    call = loop.iter
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "range" and len(call.args) == 3
            and not call.keywords and ast.unparse(call.args[0]) == START and ast.unparse(call.args[2]) == STEP):
        return None
    if any(isinstance(node, ast.Return | ast.Break | ast.Continue) for node in ast.walk(loop)):
        return None
    before = {argument.arg for argument in function.args.args}
    before.update(*(_bound(statement) for statement in function.body[:-1]))
    return None if _bound(loop) & before else loop


def _bound(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def without_walk(function: ast.FunctionDef, piece: str) -> bool:
    """Let ``function`` do one piece, numbered ``piece(items)``, in place of its walk; False if it has none."""
    loop = walk_of(function)
    if loop is None:
        return False
    assert isinstance(loop.iter, ast.Call)
    number = ast.Call(ast.Name(piece, ast.Load()), [loop.iter.args[1]], [])
    function.body[-1:] = [ast.Assign([loop.target], number), *loop.body]
    return True
