"""The micro world: reasoning collapse in half a minute on one CPU thread, and what cures it. See `world` first."""
