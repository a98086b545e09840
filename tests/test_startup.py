"""What imports cost: torch comes with the first name that needs it, torch._dynamo with torch.compile."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_metazoo_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, metazoo; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert python(code) == "[]\n"


def test_torch_dynamo_waits_for_torch_compile() -> None:
    code = """
import sys
import metazoo.classifier, metazoo.cli, metazoo.ops, metazoo.training, metazoo.zoo
from metazoo.plugins import registry
assert registry().algorithms
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    assert python(code) == "True False\n"
