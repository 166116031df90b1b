"""Public benchmarks, scored as their authors do; one small file each."""
