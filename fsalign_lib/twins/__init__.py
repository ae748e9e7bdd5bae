"""Write small random twins of the published models and rewards: the same files, classes, configuration fields.

`save_twin(name, folder)` and `save_reward_twin(name, folder)` write what a preset or a full-size reward reads, in the
layout of `fsalign_lib.models.hub`. With `hub=folder`, `load` and `load_reward` then run the code that loads the
published weights, file for file.
"""

from fsalign_lib.twins.models import TEXT_LENGTH, WIDTH, save_twin
from fsalign_lib.twins.rewards import save_dino_twin, save_reward_twin

__all__ = ["TEXT_LENGTH", "WIDTH", "save_dino_twin", "save_reward_twin", "save_twin"]
