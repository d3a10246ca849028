"""``python -m hasten``, which is how launchers such as ``torchrun`` start the command line."""

from hasten._cli import main

main()
