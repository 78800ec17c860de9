"""What happens when machines, files and users fail: `python -m bench.faults`."""
