"""Whose bug it is: the plugin whose own code an exception came from, and nobody else's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from metazoo import blame
from metazoo.plugins import Plugin


def raised_in(*modules: str) -> Exception:
    """Return an exception of the last of these modules, called by the one before, and so on."""
    call = lambda: 1 / 0  # noqa: E731
    for module in reversed(modules):
        space = {"__name__": module, "call": call}
        exec(compile("def function():\n    return call()", f"{module}.py", "exec"), space)
        call = space["function"]  # type: ignore[assignment]
    try:
        call()
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def plugin(target: str, distribution: str, problem: str | None = None, **provides: list[str]) -> Plugin:
    return Plugin(distribution, target, distribution, "1.0", problem, provides=provides)


NAMESPACE = [plugin("acme.a.plugin", "acme-a"), plugin("acme.b.plugin", "acme-b")]
TWO = [plugin("near.one", "near"), plugin("near.two", "near")]
CASES: dict[str, tuple[list[Plugin], tuple[str, ...], str | None]] = {
    "its own module": ([plugin("near", "near")], ("near",), "near"),
    "beside it": ([plugin("near.plugin:one", "near")], ("near.helpers.deep",), "near"),
    "a namesake": ([plugin("near", "near")], ("nearest",), None),
    "somebody else": ([plugin("near", "near")], ("torch.nn",), None),
    "the innermost": ([plugin("near", "near"), plugin("far", "far")], ("near", "far", "torch.nn"), "far"),
    "a namespace": (NAMESPACE, ("acme.b.helpers",), "acme-b"),
    "a namespace, the other way round": (NAMESPACE[::-1], ("acme.a",), "acme-a"),
    "what several could own": (NAMESPACE, ("acme.shared",), None),
    "a package and one in its name": ([plugin("acme.b", "acme-b"), plugin("acme", "acme")], ("acme.helpers",), "acme"),
    "two of one distribution": (TWO, ("near.helpers",), "near"),
    "what was never loaded": ([plugin("near.plugin", "old-near", "ImportError: x"), *TWO], ("near.helpers",), "near"),
    "what is not loaded alone": ([plugin("near", "near", "ImportError: x")], ("near",), None),
    "what works in part": ([plugin("near", "near", "a name is unusable", algorithms=["x"])], ("near",), "near"),
    "metazoo itself": ([plugin("metazoo.no.such:thing", "odd"), plugin("metazoo", "odder")], ("metazoo.train",), None),
    "a built-in": ([plugin("metazoo.algorithms.maml", "metazoo")], ("metazoo.algorithms.maml",), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_plugin_whose_code_it_was(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, modules, owner = CASES[case]
    monkeypatch.setattr(blame, "registry", lambda: SimpleNamespace(plugins=plugins))
    fault = blame.at_fault(raised_in(*modules))
    assert (fault.plugin.distribution if fault else None) == owner
    if fault is not None:
        # The last frame of the plugin's own, whatever it called.
        own = [module for module in modules if module.partition(".")[0] == fault.plugin.target.partition(".")[0]][-1]
        assert fault.place == f'File "{own}.py", line 2, in function'
