"""``import speedup`` loads nothing else; the names come from their modules when they are asked for."""

import ast
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import speedup


def loaded(code: str) -> set[str]:
    code += "; import sys; print(*[n for n in sys.modules if n.split('.')[0] in ('speedup', 'torch', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_alone_imports_neither_torch_nor_its_own_modules() -> None:
    assert loaded("import speedup; dir(speedup)") == {"speedup"}


def test_an_error_to_catch_needs_no_more_than_the_errors() -> None:
    assert loaded("from speedup import CheckError") == {"speedup", "speedup.errors"}


def test_all_public_names_can_be_had_and_none_hides_a_module() -> None:
    for name in speedup.__all__:
        assert not isinstance(getattr(speedup, name), ModuleType), name
    assert set(speedup.__all__) <= set(dir(speedup))


def test_type_checkers_see_the_names_where_they_are() -> None:
    checked = next(n for n in ast.parse(inspect.getsource(speedup)).body if isinstance(n, ast.If))
    seen = {a.name: n.module for n in checked.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == speedup._HOME_OF


def test_a_wrong_name_is_told_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'speedup' has no attribute 'plans'"):
        speedup.plans  # noqa: B018
    with pytest.raises(ImportError):
        exec("from speedup import plans")
