"""Finding backends: entry points, load errors, registering by hand; and what importing the package imports."""

import subprocess
import sys
import textwrap

import pytest
import torch
from fakes import Fake, registered

import portable_gla
from portable_gla import registry


def run_python(code, *paths):
    script = f"import sys\nsys.path[:0] = {[str(path) for path in paths]!r}\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)


def announce(folder, name, module, body):
    """Lay down a distribution that announces a backend."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[portable_gla.backends]\n{name} = {module}:backend\n")
    (folder / f"{module}.py").write_text(textwrap.dedent(body))


@pytest.mark.parametrize(("body", "told"), [
    ("raise OSError('no driver here')", "OSError: no driver here"),
    ("import no_such_library_anywhere", "ModuleNotFoundError: No module named 'no_such_library_anywhere'"),
    ("backend = 3", "no backend named 'broken'"),
    ("", "AttributeError"),
])
def test_a_backend_that_fails_to_load_is_listed_with_its_error(tmp_path, body, told):
    announce(tmp_path, "broken", "broken_backend", body)
    result = run_python("""
        import portable_gla, torch
        rows = {row.name: row for row in portable_gla.backends()}
        print(rows["broken"])
        assert rows["cpu"].available and not rows["broken"].available
        q = torch.randn(1, 5, 1, 3)
        portable_gla.attention(q, q, q)
        print(portable_gla.plan(q, q, q))
        try:
            portable_gla.attention(q, q, q, backend="broken")
        except portable_gla.UnsupportedProblem as error:
            print("refused", error)
        try:
            portable_gla.testing.emulate("broken").__enter__()
        except ValueError as error:
            print("emulate", error)
    """.replace("import portable_gla, torch", "import portable_gla, portable_gla.testing, torch"), tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(told) >= 4, result.stdout
    assert "load-error" in result.stdout and "python -c 'import portable_gla, broken_backend'" in result.stdout


def test_importing_the_package_imports_no_device_library(tmp_path):
    for name in ("triton", "torch_npu", "numba", "cupy"):
        (tmp_path / f"{name}.py").write_text("raise SystemError('must not be imported')")
    result = run_python("""
        import sys, torch
        before = set(sys.modules)
        import portable_gla
        q = torch.randn(1, 5, 1, 3, requires_grad=True)
        portable_gla.attention(q, q, q).sum().backward()
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        print(sorted(new & {"triton", "torch_npu", "numba", "cupy", "typer", "rich", "matplotlib"}))
    """, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_a_backend_can_be_registered_and_removed():
    q = torch.randn(1, 5, 1, 3)
    with registered(Fake("mine", priority=200)):
        assert portable_gla.plan(q, q, q).backend == "mine"
        assert "mine" in [row.name for row in portable_gla.backends()]
        with pytest.raises(ValueError, match="'mine' is taken"):
            registry.register(Fake("mine"))
    assert "mine" not in registry.names()


def test_what_is_no_backend_is_refused():
    with pytest.raises(TypeError, match=r"lacks .*forward, backward, decode"):
        registry.register(type("Half", (), {"name": "half", "priority": 1, "plain": False})())
    with pytest.raises(ValueError, match="colon"):
        registry.register(Fake("a:b"))


def test_the_backends_of_this_repository_are_all_there():
    assert {"cpu", "eager", "reference"} <= {row.name for row in portable_gla.backends() if row.available}
