"""Looking inside: capture attention, measure heads, show both in a page, a picture and numbers."""
