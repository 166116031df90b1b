"""AutoTool: think only where it pays (arXiv 2603.13348)."""
