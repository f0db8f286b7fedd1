"""`python -m pixtok` is the command `pixtok`."""

from pixtok.cli import main

main()
