"""The live page: one HTML file in which a model runs."""
