"""What every room stands on: paths, errors, the console, the machine, names, numbers."""
