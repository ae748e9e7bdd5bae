"""Define objectives, one file a family: pure functions of tensors that never see a model."""
