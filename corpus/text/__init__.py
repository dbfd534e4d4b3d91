"""Text before it is tokens: documents, and prose in the sources of Python packages."""
