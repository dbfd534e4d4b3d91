"""Small problems of many kinds, and samplers side by side on them: `python -m benchmarks.problems`."""
