"""What a run will be, before it is one, and how far it is."""
