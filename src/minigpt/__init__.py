"""minigpt: text -> tokens -> batch -> logits -> loss -> step -> checkpoint -> samples and attention maps."""

__version__ = "0.1.0"
