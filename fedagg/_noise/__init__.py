"""Integer noise for privacy, and the grid that it is drawn on."""
