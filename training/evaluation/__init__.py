"""What a network is worth: one loop over a data set (loop.py) and what is made of its outputs: accuracy.py counts,
predictions.py keeps them for the report. evaluate_only.py is --eval-only.
"""
