"""Pages: render numbers as single HTML files that need no network."""
