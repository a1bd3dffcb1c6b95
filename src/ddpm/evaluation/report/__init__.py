"""What an evaluation found: as lines, as JSON, as a page."""
