"""The pocket world: a 64x64 text-to-image world on 45 animals that runs on any laptop."""
