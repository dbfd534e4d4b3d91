"""What OptunaHub's registry could hold of this project, in its layout; see docs/sampler.md."""
