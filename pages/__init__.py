"""One offline page about a study, and the same facts as Markdown and JSON."""
