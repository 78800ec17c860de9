"""From batches to weights: recipes, models, losses, optimizers, schedules, run state and reports."""
