"""A configuration as a record's folder: seeds, evidence, texts, and the process that runs it again."""
