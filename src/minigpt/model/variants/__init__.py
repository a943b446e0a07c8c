"""Other graphs, similarities, kernels and positions than the default's."""
