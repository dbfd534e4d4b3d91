"""A study on this machine: opened, and compared with what is stored."""
