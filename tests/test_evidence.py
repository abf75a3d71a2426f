"""What a grid keeps of its runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripted import TINY

import lpds
from lpds.decoders.store import save_decoder
from lpds.errors import LpdsError
from lpds.evidence import copy_evidence


def test_evidence_names_no_machine(tmp_path, monkeypatch):
    """A decoder below the working folder is named from there, and opens from there; one elsewhere keeps its place."""
    monkeypatch.chdir(tmp_path)
    toy = lpds.load_decoder("toy")
    save_decoder(toy, tmp_path / "mine" / "decoder")
    lpds.steer("toy", decoder="folder:mine/decoder", out="runs/here", **TINY)
    copy_evidence(Path("runs/here"), Path("kept/here"))
    texts = [path.read_text() for path in Path("kept/here").rglob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)
    kept = json.loads(Path("kept/here/config.json").read_text())
    assert kept["decoder"]["reference"] == "folder:mine/decoder"
    assert lpds.load_policy("kept/here").decoder.fingerprint == lpds.load_decoder("folder:mine/decoder").fingerprint
    monkeypatch.chdir(tmp_path / "kept")
    copy_evidence(tmp_path / "runs" / "here", tmp_path / "kept" / "there")
    elsewhere = json.loads((tmp_path / "kept" / "there" / "config.json").read_text())
    assert elsewhere["decoder"]["reference"] == f"folder:{tmp_path / 'mine' / 'decoder'}"


def test_a_run_that_has_not_finished_is_no_evidence_and_leaves_no_half_of_itself(tmp_path, monkeypatch):
    """A traceback, and a hidden folder that was committed, came of one."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    lpds.steer("toy", out=run, **TINY)
    copy_evidence(run, kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()}
    summary = (run / "summary.json").read_bytes()
    (run / "summary.json").unlink()
    with pytest.raises(LpdsError, match=r"has not finished \(summary\.json is missing\)"):
        copy_evidence(run, kept)
    (run / "summary.json").write_bytes(summary)
    monkeypatch.setattr(shutil, "copytree", lambda *args: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        copy_evidence(run, kept)
    assert {path.name: path.read_bytes() for path in kept.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]
