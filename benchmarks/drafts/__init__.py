"""How many draws from a draft would run, by the scripts' own checks."""
