"""The structured sampler: a surrogate over gates, categories and numbers."""
