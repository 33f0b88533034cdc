"""Turns the source of a Triton function into Python that runs on emulated tensors.

Where Triton's compiler gives a statement another meaning than Python does, the rewritten statement calls a helper by
one of the names below, to be found in the function's globals.
"""

from __future__ import annotations

import ast
import types
from typing import Any

from triton.runtime.jit import JITFunction, get_jit_fn_file_line

from .errors import EmulationError
from .walks import without_walk

AS_TENSOR, TRUTH, NOT, AND, OR, PIECE = (
    f"__emulated_{name}__" for name in ("as_tensor", "truth", "not", "and", "or", "piece"))


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])


def _later(value: ast.expr) -> ast.Lambda:
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(nothing, value)


class _Rewriter(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.decorator_list = []
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        node.value = _call(AS_TENSOR, node.value)  # a Python number becomes a tensor unless its target has a type
        return node

    def _tested(self, node: Any) -> Any:
        self.generic_visit(node)
        node.test = _call(TRUTH, node.test)  # a block has no truth value
        return node

    visit_If = visit_While = visit_IfExp = visit_Assert = _tested

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        return _call(NOT, node.operand) if isinstance(node.op, ast.Not) else node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        return _call(AND if isinstance(node.op, ast.And) else OR, *map(_later, node.values))

    def visit_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) > 1:
            raise EmulationError(f"line {node.lineno} of the function: Triton has no chained comparisons")
        return self.generic_visit(node)


def rewrite(function: JITFunction[Any], namespace: dict[str, Any]) -> types.FunctionType:
    """Return the Python function that does what ``function`` compiles to, with ``namespace`` as its globals."""
    return _compiled(function, ast.parse(function.src), namespace)


def rewrite_piece(function: JITFunction[Any], namespace: dict[str, Any]) -> types.FunctionType | None:
    """Return a function that does one piece of what ``function`` walks; None if it walks none."""
    tree = ast.parse(function.src)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    return _compiled(function, tree, namespace) if without_walk(definition, PIECE) else None


def _compiled(function: JITFunction[Any], tree: ast.Module, namespace: dict[str, Any]) -> types.FunctionType:
    file, line = get_jit_fn_file_line(function)
    tree = _Rewriter().visit(tree)
    ast.increment_lineno(tree, line - 1)
    ast.fix_missing_locations(tree)
    made: dict[str, Any] = {}
    exec(compile(tree, file, "exec", dont_inherit=True), namespace, made)
    result = made[function.fn.__name__]
    assert isinstance(result, types.FunctionType)
    return result
