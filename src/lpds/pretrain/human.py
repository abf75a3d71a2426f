"""The human demonstrations of Adroit Door, as hand_dapg recorded them (Rajeswaran et al. 2018, arXiv 1709.10087)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from lpds.errors import LpdsError, one_line
from lpds.pretrain.experts import Demonstrations

OTHER_REWARDS = (
    "its rewards are hand_dapg's, where the distance to the handle costs; in gymnasium-robotics' Door it pays, so as --demos "
    "they teach another reward than the environment's"
)


def human_demonstrations(path: Path) -> Demonstrations:
    """Open an npz with ``NN/observations``, ``NN/actions`` and ``NN/rewards`` for every episode NN.

    Raises:
        LpdsError: the file is missing or of another layout.
    """
    if not path.is_file():
        raise LpdsError(f"human demonstrations {path} do not exist")
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise LpdsError(f"human demonstrations {path} cannot be read: {one_line(error)}") from None
    episodes = sorted({name.split("/")[0] for name in arrays if name.endswith("/observations")})
    missing = [f"{one}/{what}" for one in episodes for what in ("actions", "rewards") if f"{one}/{what}" not in arrays]
    if not episodes or missing:
        gone = missing[0] if missing else "NN/observations"
        raise LpdsError(f"{path} holds no {gone}; expected the layout of hand_dapg's demonstrations")
    for one in episodes:
        sizes = [len(np.atleast_1d(arrays[f"{one}/{what}"])) for what in ("observations", "actions", "rewards")]
        if len(set(sizes)) > 1:
            told = "{} observations, {} actions and {} rewards".format(*sizes)
            raise LpdsError(f"{path}: episode {one} has {told}, which do not agree")
    obs, actions, rewards = (
        [np.asarray(arrays[f"{episode}/{what}"], np.float32) for episode in episodes]
        for what in ("observations", "actions", "rewards")
    )
    return Demonstrations(
        obs=np.concatenate(obs),
        # recorded before the environment's own clip
        actions=np.clip(np.concatenate(actions), -1.0, 1.0),
        episode_lengths=np.asarray([len(one) for one in actions], np.int64),
        episode_returns=np.asarray([float(one.sum()) for one in rewards]),
        episode_source=np.zeros(len(episodes), np.int64),
        rewards=np.concatenate(rewards),
        final_obs=np.full((len(obs), obs[0].shape[1]), np.nan, np.float32),  # what was seen after the last step is not recorded
        terminated=np.zeros(len(episodes), np.bool_),
        remark=f"{path.name}: {OTHER_REWARDS}",
    )
