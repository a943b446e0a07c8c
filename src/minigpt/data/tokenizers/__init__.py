"""Text <-> token ids: bytes, characters, BPE trained here or by others."""
