"""The public face."""

import importlib
import types

import lpds


def test_no_public_function_is_shadowed_by_a_module_of_its_name():
    # importing a submodule sets it as an attribute of the package: a public function must not share its name
    importlib.import_module("lpds.api")
    for name in lpds.__all__:
        if name != "metrics":
            assert not isinstance(getattr(lpds, name), types.ModuleType), name
    report = lpds.evaluate("toy", "toy", episodes=2, seed=3)
    again = lpds.evaluate("toy", "toy", episodes=2, seed=3)
    assert (report.returns == again.returns).all()
