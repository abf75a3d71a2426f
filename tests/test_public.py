"""The public face."""

import importlib
import types

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
