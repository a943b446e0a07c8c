"""The live page: a run as one HTML file, in which the model itself runs."""
