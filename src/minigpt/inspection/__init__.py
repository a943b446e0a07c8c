"""Inspection: capture attention weights, score heads, follow relations between tokens, save snapshots."""
