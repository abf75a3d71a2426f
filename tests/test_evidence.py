"""What a grid keeps of its runs."""

from __future__ import annotations

import json
from pathlib import Path

from scripted import TINY

import lpds
from lpds.decoders.store import save_decoder
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
