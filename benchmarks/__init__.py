"""What ksmtuned is measured by: `make contest` runs contest.py. No part of the program."""
