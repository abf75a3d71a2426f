"""Reference figures of rliable for ``lpds.stats``: python benchmarks/rliable_reference.py > tests/rliable.json.

rliable 1.2.0 needs pandas < 3, so it lives in an environment of its own and the tests read its figures.
"""

import json
import sys
from pathlib import Path

import numpy as np
from rliable import library, metrics

from lpds.commands.terminal import guarded


def main() -> None:
    """Print scores of two algorithms with what rliable says of them, as JSON."""
    rng = np.random.default_rng(11)
    x, y = rng.normal(2500, 300, (10, 1)).round(1), rng.normal(2700, 250, (10, 1)).round(1)
    y[3] = x[2]  # a tie
    iqm, intervals = library.get_interval_estimates(
        {"x": x, "y": y}, lambda scores: np.array([metrics.aggregate_iqm(scores)]), reps=50_000
    )
    better, better_interval = library.get_interval_estimates({"yx": (y, x)}, metrics.probability_of_improvement, reps=20_000)
    out = {
        "made_by": "rliable 1.2.0, get_interval_estimates with 50000 and 20000 resamples; one task, a row is a run",
        "x": x[:, 0].tolist(),
        "y": y[:, 0].tolist(),
        "iqm": {name: [float(iqm[name][0]), *map(float, intervals[name][:, 0])] for name in "xy"},
        "probability_y_above_x": [float(np.ravel(better["yx"])[0]), *map(float, np.ravel(better_interval["yx"]))],
    }
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    sys.exit(guarded(Path(__file__).stem, main))
