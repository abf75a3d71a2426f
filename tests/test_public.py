"""The public face."""

import ast
import importlib
import inspect
import sys
import types
from pathlib import Path

import torch

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


def _report(returns):
    import numpy as np

    from lpds.evaluation import EvalReport

    values = np.asarray(returns, float)
    nan = np.full(len(values), np.nan)
    return EvalReport(values, nan, nan, np.ones(len(values), int), 0, 1.0, np.zeros((len(values), 1), np.float32))


def test_a_run_says_in_its_last_line_whether_it_is_better_worse_or_undecided(tmp_path):
    returns = [10.0 * index for index in range(1, 9)]
    frozen = _report(returns)
    for shift, word in ((+5.0, "BETTER"), (-5.0, "WORSE than the frozen policy: do not use it"), (0.0, "not told apart")):
        # a pair's difference is the same for all, although the returns themselves overlap: pairing decides
        run = lpds.Run(tmp_path, True, frozen, _report([value + shift for value in returns]))
        assert word in run.verdict()
        assert run.difference == (shift, shift, shift)


def test_tensorboard_gets_every_row(tmp_path):
    import pytest

    pytest.importorskip("tensorboard")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own protobuf and numpy ones
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        small = {"warmup_steps": 200, "warmup_fits": 2, "eval_every": 0, "final_episodes": 2, "width": 16}
        run = lpds.steer("toy", steps=500, out=tmp_path / "run", quiet=True, tensorboard=True, **small)
        events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    from lpds.log import read_json_lines

    rows = [row for row in read_json_lines(run.folder / "metrics.jsonl") if row["delta_sq_mean"] is not None]
    scalars = events.Scalars("delta_sq_mean")
    assert [event.step for event in scalars] == [row["step"] for row in rows]


def test_a_plain_function_is_no_decoder_and_the_way_to_make_one_is_named(tmp_path, refused):
    with refused("decoder is a function", "lpds.wrap_decoder"):
        lpds.steer(decoder=lambda obs, w: w, env="Hopper-v5", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with refused("decoder is a Linear", "lpds.wrap_decoder"):
        lpds.check(torch.nn.Linear(3, 2))


def test_a_checker_knows_every_public_name_and_no_other():
    """A module's ``__getattr__`` lets a checker take any name for one of the package's, ``lpds.stear`` too."""
    tree = ast.parse(Path(lpds.__file__).read_text())
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__getattr__"]
    blocks = {ast.unparse(node.test): node.body for node in tree.body if isinstance(node, ast.If)}
    assert [node.name for node in blocks["not TYPE_CHECKING"]] == ["__getattr__"]
    told = {alias.name for node in blocks["TYPE_CHECKING"] for alias in node.names if alias.asname == alias.name}
    assert told | {"__version__"} == set(lpds.__all__)


def test_what_public_functions_return_and_raise_is_public():
    import typing

    from lpds.decoders.base import BaseDecoder

    for name in lpds.__all__:
        function = getattr(lpds, name)
        if isinstance(function, types.FunctionType):
            returned = typing.get_type_hints(inspect.unwrap(function), vars(sys.modules[function.__module__]))["return"]
            assert returned.__name__ in lpds.__all__ or issubclass(returned, BaseDecoder), name
    assert issubclass(lpds.EnvironmentFault, lpds.RunFault)
    assert issubclass(lpds.DecoderFault, lpds.RunFault)


def test_a_notebook_shows_a_report_as_print_does(tmp_path):
    """The last line of a cell was two thousand characters of a dataclass."""
    report = lpds.check("toy")
    assert repr(report) == str(report)
    assert repr(report).startswith("decoder 'toy'")
    found = lpds.look("toy", "toy", episodes=2)
    assert repr(found) == str(found)
    compared = lpds.compare(Path(__file__).parents[1] / "results" / "hopper" / "lpds" / "seed0")
    assert repr(compared) == str(compared)
    evaluated = _report([10.0, 20.0])
    assert repr(evaluated) == "EvalReport(2 episodes of seed 0: return 15)"
    run = lpds.Run(tmp_path, True, evaluated, evaluated, method="lpds")
    assert repr(run) == f"Run({str(tmp_path)!r}, lpds): {run.verdict()}"
    stopped = lpds.Run(tmp_path, False, None, None)
    assert repr(stopped).startswith(f"Run({str(tmp_path)!r}): stopped; everything is saved")
