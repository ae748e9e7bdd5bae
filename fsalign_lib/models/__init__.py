"""Models: presets and their loading, the latent model, adapters, conditioning, exchanges with files and hubs."""
