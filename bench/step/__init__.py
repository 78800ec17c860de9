"""The training step beside its peers: how long it takes, and where. The command line is `python -m bench.step`."""
