"""TPE over groups of parameters that are active together."""
