"""The live page: one HTML file in which the model itself runs."""
