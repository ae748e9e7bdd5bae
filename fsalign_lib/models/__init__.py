"""Load and run published models: presets, the latent model, adapters, conditioning, files and hubs."""
