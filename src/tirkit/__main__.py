"""`python -m tirkit` is the same as `tirkit`."""

from tirkit.cli import main

main()
