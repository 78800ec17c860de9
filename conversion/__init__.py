"""From image files to .beton files."""
