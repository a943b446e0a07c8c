"""Text <-> token ids: bytes, characters, and BPE trained here or elsewhere."""
