"""Measuring: `metrics` judges attempts, `run` makes them, `tables`, `report` and `terminal` show what came of it."""
