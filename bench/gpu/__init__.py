"""What a GPU computes, and how fast, in few minutes. The command line is `python -m bench.gpu`."""
