"""LeRobot's folders: both layouts give the same numbers, and a broken one gets one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from lpds.errors import LpdsError
from lpds.pretrain.datasets import open_data
from lpds.pretrain.lerobot_dataset import open_lerobot

pa = pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="LeRobot datasets need pyarrow")

LENGTHS = (3, 5, 4)
SIZES = {"observation.state": 4, "observation.environment_state": 3, "observation.a_force": 1, "action": 2}
DEFAULT = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def contents():
    """Columns of the whole dataset as LeRobot keeps them; those of shape [1] are scalars."""
    rng = np.random.default_rng(0)
    total = sum(LENGTHS)
    columns = {name: rng.normal(size=(total, size)).astype(np.float32) for name, size in SIZES.items()}
    last = np.zeros(total, bool)
    last[np.cumsum(LENGTHS) - 1] = True
    success = last.copy()
    success[LENGTHS[0] - 1] = False  # the first episode stopped for another reason
    frame = np.concatenate([np.arange(length) for length in LENGTHS])
    return columns | {
        "next.reward": success.astype(np.float32)[:, None],
        "next.done": last[:, None],
        "next.success": success[:, None],
        "timestamp": (frame / 10.0).astype(np.float32)[:, None],
        "frame_index": frame[:, None],
        "episode_index": np.repeat(np.arange(3), LENGTHS)[:, None],
        "index": np.arange(total)[:, None],
        "task_index": np.zeros((total, 1), np.int64),
    }


def write(folder, version, *, columns=None, fixed=True, features=(), **facts):
    """The layout of either version: an episode a file, or files of several episodes; lists of fixed size or not."""
    columns = contents() if columns is None else columns

    def table(rows):
        held = {}
        for name, values in columns.items():
            if isinstance(values, pa.Array):
                held[name] = values.take(pa.array(rows))
            elif values.shape[1] == 1:
                held[name] = pa.array(values[rows, 0])
            elif fixed:
                held[name] = pa.FixedSizeListArray.from_arrays(pa.array(values[rows].ravel()), values.shape[1])
            else:
                held[name] = pa.array(values[rows].tolist(), pa.list_(pa.float32()))
        return pa.table(held)

    def save(path, content):
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, path)

    kinds = {"b": "bool", "i": "int64", "f": "float32"}
    info = {
        "codebase_version": version, "robot_type": "unknown", "fps": 10, "chunks_size": 1000,
        "total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "total_tasks": 1, "splits": {"train": "0:3"},
    }  # fmt: skip
    described = {
        name: {"dtype": "float32" if isinstance(value, pa.Array) else kinds[value.dtype.kind],
               "shape": [SIZES.get(name, 1)], "names": None}
        for name, value in columns.items()
    }  # fmt: skip
    starts = np.cumsum((0, *LENGTHS))
    if version == "v3.0":
        info |= {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
        files = [0, 0, 1]  # two episodes share the first file
        for file in (0, 1):
            rows = [row for e in range(3) if files[e] == file for row in range(starts[e], starts[e + 1])]
            save(folder / f"data/chunk-000/file-{file:03d}.parquet", table(rows))
        listed = {
            "episode_index": [0, 1, 2], "tasks": [["push"]] * 3, "length": list(LENGTHS), "data/chunk_index": [0] * 3,
            "data/file_index": files, "dataset_from_index": starts[:-1], "dataset_to_index": starts[1:],
            "stats/action/mean": [[0.0, 0.0]] * 3, "meta/episodes/chunk_index": [0] * 3, "meta/episodes/file_index": [0] * 3,
        }  # fmt: skip
        save(folder / "meta/episodes/chunk-000/file-000.parquet", pa.table(listed))
        save(folder / "meta/tasks.parquet", pa.table({"task_index": [0], "__index_level_0__": ["push"]}))
    else:
        info |= {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", "total_chunks": 1}
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        lines = [{"episode_index": e, "tasks": ["push"], "length": length} for e, length in enumerate(LENGTHS)]
        (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push"}) + "\n")
        for e in range(3):
            save(folder / f"data/chunk-000/episode_{e:06d}.parquet", table(list(range(starts[e], starts[e + 1]))))
    described |= dict(features)
    (folder / "meta/info.json").write_text(json.dumps(info | {"features": described} | facts))
    return columns


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_both_layouts_give_every_number(tmp_path, version, fixed):
    image = {"observation.images.top": {"dtype": "video", "shape": [96, 96, 3], "names": None}}
    held = write(tmp_path, version, fixed=fixed, features=image)
    data = open_data(str(tmp_path))
    order = ("observation.state", "observation.environment_state", "observation.a_force")
    np.testing.assert_array_equal(data.obs, np.concatenate([held[name] for name in order], axis=1))
    np.testing.assert_array_equal(data.actions, held["action"])
    assert data.episode_lengths.tolist() == list(LENGTHS)
    assert data.episode_returns.tolist() == [0.0, 1.0, 1.0]
    np.testing.assert_array_equal(data.rewards, held["next.reward"][:, 0])
    assert data.terminated.tolist() == [False, True, True]  # a recording that stopped without success is no end
    assert np.isnan(data.final_obs).all()  # no version keeps what was seen after the last step
    assert data.remark == ""
    assert data.obs.dtype == data.actions.dtype == np.float32
    np.testing.assert_array_equal(open_lerobot(tmp_path, ["observation.a_force"]).obs, held["observation.a_force"])


def test_words_that_are_not_ascii_are_read_whatever_the_machines_language(tmp_path):
    """LeRobot writes UTF-8; it was read in the locale's encoding, which in a bare container is ASCII and on Windows another."""
    write(tmp_path / "data", "v2.1", robot_type="Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n")
    for path in (tmp_path / "data/meta/episodes.jsonl", tmp_path / "data/meta/info.json"):
        whole = [json.loads(line) for line in path.read_text().splitlines()]
        for one in whole:
            one.update({"tasks": ["\N{LATIN CAPITAL LETTER O WITH DIAERESIS}ffne die Schublade"]} if "tasks" in one else {})
        path.write_bytes("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in whole).encode())
        assert max(path.read_bytes()) > 127
    policy = tmp_path / "policy"
    policy.mkdir()
    told = json.dumps({"type": "act", "task": "\N{LATIN SMALL LETTER E WITH ACUTE}"}, ensure_ascii=False)
    (policy / "config.json").write_bytes(told.encode())
    code = (
        "import locale, sys\n"
        "assert 'utf' not in locale.getpreferredencoding(False).lower()\n"
        "from pathlib import Path\n"
        "from lpds.decoders.lerobot.folder import policy_type\n"
        "from lpds.errors import LpdsError\n"
        "from lpds.pretrain.lerobot_dataset import open_lerobot\n"
        "assert len(open_lerobot(Path('data')).episode_lengths) == 3\n"
        "try: policy_type(Path('policy'))\n"
        "except LpdsError as error: assert 'act' in str(error), error\n"
    )
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_they_are_rows_for_the_replay(tmp_path):
    from lpds.pretrain.rows import demonstration_rows
    from lpds.types import LatentSpec

    write(tmp_path, "v3.0")
    rows = demonstration_rows(open_data(str(tmp_path)), LatentSpec((8,), (2, 2), (2, 2)), gamma=0.9, discount="exact")
    assert len(rows["obs"]) == 1 + 3 + 2  # the first, of three steps, did not end: its third state is where it led
    np.testing.assert_allclose(rows["discount"].numpy(), [0.81, 0.81, 0.81, 0.0, 0.81, 0.0], rtol=1e-6)
    np.testing.assert_allclose(rows["reward"].numpy(), [0, 0, 0, 1, 0, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(rows["next_obs"][0].numpy(), open_data(str(tmp_path)).obs[2])


def test_where_nothing_says_success_every_done_is_an_end_and_that_is_told(tmp_path):
    """Its last reward may be a success, which an episode that goes on would repeat for ever and a shorter one would lose."""
    from lpds.pretrain.rows import demonstration_rows
    from lpds.types import LatentSpec

    write(tmp_path, "v3.0", columns={key: value for key, value in contents().items() if key != "next.success"})
    data = open_data(str(tmp_path))
    assert data.terminated.tolist() == [True] * 3
    assert "next.success" in data.remark
    write(tmp_path / "b", "v3.0", columns={key: value for key, value in contents().items() if key != "next.done"})
    assert open_data(str(tmp_path / "b")).terminated.tolist() == [False, True, True]  # a success is an end by itself
    rows = demonstration_rows(data, LatentSpec((8,), (2, 2), (2, 2)), gamma=0.9, discount="exact")
    np.testing.assert_allclose(rows["discount"].numpy(), [0.81, 0.0, 0.81, 0.81, 0.0, 0.81, 0.0], rtol=1e-6)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_without_rewards_there_is_enough_to_clone(tmp_path, version):
    write(tmp_path, version, columns={key: value for key, value in contents().items() if not key.startswith("next.")})
    data = open_data(str(tmp_path))
    assert data.rewards.size == data.final_obs.size == 0
    assert np.isnan(data.episode_returns).all()
    assert not data.terminated.any()


def test_frames_are_put_in_their_order(tmp_path):
    held = contents()
    turned = np.concatenate([np.arange(3)[::-1], np.arange(3, 12)])
    write(tmp_path, "v3.0", columns={name: value[turned] for name, value in held.items()})
    np.testing.assert_array_equal(open_data(str(tmp_path)).actions, held["action"])


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_broken_folder_gets_one_line(tmp_path, refused, version):
    def without(*names):
        return {key: value for key, value in contents().items() if key not in names}

    with refused("meta/info.json is missing"):
        open_data(str(tmp_path))
    write(tmp_path / "a", version, columns=without("action"))
    with refused("has no action column", "observation.state"):
        open_data(str(tmp_path / "a"))
    images = {"observation.images.top": {"dtype": "video", "shape": [96, 96, 3]}}
    write(tmp_path / "b", version, columns=without(*list(SIZES)[:3]), features=images)
    with refused("no observation.state", "observation.images.top"):
        open_data(str(tmp_path / "b"))
    ragged = pa.array([[0.0] * (3 if row == 2 else 4) for row in range(sum(LENGTHS))], pa.list_(pa.float32()))
    write(tmp_path / "c", version, columns=contents() | {"observation.state": ragged})
    with refused("observation.state has rows of 3, 4 numbers", "says 4"):
        open_data(str(tmp_path / "c"))
    spoiled = contents()
    spoiled["action"][4, 1] = np.nan
    write(tmp_path / "d", version, columns=spoiled)
    with refused("NaN"):
        open_data(str(tmp_path / "d"))
    write(tmp_path / "e", version, codebase_version="v1.6")
    with refused("'v1.6'", "v3.0"):
        open_data(str(tmp_path / "e"))
    short = contents()
    short["episode_index"][-1] = 7
    write(tmp_path / "f", version, columns=short)
    with refused("has 3 frames of episode 2", "says 4"):
        open_data(str(tmp_path / "f"))
    write(tmp_path / "g", version, columns=contents(), features={"observation.gone": {"dtype": "float32", "shape": [2]}})
    with refused("no column observation.gone"):
        open_data(str(tmp_path / "g"))
    for what in ("total_episodes", "total_frames"):  # a part of what was recorded would be taken for all of it
        write(tmp_path / what, version, **{what: 100})
        with refused(f"lists {len(LENGTHS)} episodes of {sum(LENGTHS)} frames", f"{what} 100"):
            open_data(str(tmp_path / what))
    write(tmp_path / "h", version)
    for path in (tmp_path / "h/data").rglob("*.parquet"):
        path.write_bytes(b"PAR1 torn")
    with refused("cannot be read"):
        open_data(str(tmp_path / "h"))
    for index, template in enumerate(("data/{}.parquet", "data/{episode}.parquet", None)):
        write(tmp_path / f"i{index}", version, data_path=template)
        with refused("data_path is", repr(template), "episode_index" if version == "v2.1" else "file_index"):
            open_data(str(tmp_path / f"i{index}"))
    write(tmp_path / "j", version)
    if version == "v3.0":
        listed = tmp_path / "j/meta/episodes/chunk-000/file-000.parquet"
        listed.with_name("file-001.parquet").write_bytes(listed.read_bytes())
    else:
        listed = tmp_path / "j/meta/episodes.jsonl"
        listed.write_text(2 * listed.read_text())
    with refused("lists episode 0 twice"):
        open_data(str(tmp_path / "j"))
    (tmp_path / "h/meta/info.json").write_text('{"features": {}}')
    with refused("info.json cannot be read", "codebase_version"):
        open_data(str(tmp_path / "h"))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path, "v3.0")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LpdsError, match=r"lpds\[lerobot-data\]"):
        open_data(str(tmp_path))
