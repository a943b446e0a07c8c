"""Numbers -> one HTML file without network."""
