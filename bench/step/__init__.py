"""The training step beside baselines: how long it takes, and where. The command line is `python -m bench.step`."""
