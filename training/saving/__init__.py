"""What a run keeps: checkpoints, its folder, what makes it the same run."""
