"""What a corpus says of the encoder that made its units."""

from __future__ import annotations

from pathlib import Path

from train.corpus.description import encoder_fingerprint


def test_all_weights_of_an_encoder_count_and_nothing_else(tmp_path: Path) -> None:
    """Those of a transformers model, which lies in a folder beneath, too."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "centroids.safetensors", "model/model.safetensors", "model/config.json"):
        (tmp_path / name).write_bytes(name.encode())
    seen = {encoder_fingerprint(tmp_path)}
    (tmp_path / "README.md").write_text("a note")
    assert encoder_fingerprint(tmp_path) in seen
    for name in ("config.json", "centroids.safetensors", "model/model.safetensors"):
        (tmp_path / name).write_bytes(b"other weights")
        fingerprint = encoder_fingerprint(tmp_path)
        assert fingerprint not in seen, name
        seen.add(fingerprint)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "other.safetensors")
    assert encoder_fingerprint(tmp_path) not in seen
