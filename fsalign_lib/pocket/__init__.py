"""Make a 64x64 text-to-image world of 45 animals, the pocket world, which runs on any laptop."""
