"""Can this machine train? A module for each kind of check; the command line is `python -m tools.doctor`."""
