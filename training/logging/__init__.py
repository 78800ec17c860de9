"""What a run tells: its record (log.jsonl), the console, and trackers such as TensorBoard."""
