"""Set up the networks of distribution matching: a student, an assistant that follows it, and a frozen teacher.

| training | student | assistant | teacher |
| --- | --- | --- | --- |
| "full": three copies | all its weights | a copy of the teacher, all its weights | as loaded |
| "lora": adapters on frozen weights | its own start + an adapter | the teacher + an adapter | no adapter |

With "lora", a student that starts from the teacher's weights shares them too, so that one network is held; a student of
its own start (DMD2's, for DI*) is a second one. Either way all three compute the same at the start.
"""

import copy
from dataclasses import dataclass

from torch import nn

from fsalign_lib.models.latent_model import LatentModel, Training, fingerprint


@dataclass
class Trio:
    """Hold three models that share VAE and text encoders. None is guided: a loss that wants it asks for both halves."""

    student: LatentModel
    assistant: LatentModel
    teacher: LatentModel

    def networks(self) -> list[nn.Module]:
        """List the networks that are held, each once."""
        return list({id(m.unet): m.unet for m in (self.student, self.assistant, self.teacher)}.values())


def build_trio(
    student: LatentModel, teacher: LatentModel, training: Training, rank: int, alpha: int | None, seed: int
) -> Trio:
    """Set up student and assistant for training.

    Args:
        student: where the student starts; may be the teacher itself. Its sampling is the student's.
        teacher: where the assistant starts, too.
        rank, alpha, seed: of the adapters.

    Raises:
        ValueError: the two cannot teach each other.
    """
    check_alike(student, teacher)
    lora = training == "lora"
    same = student is teacher or student.fingerprint == teacher.fingerprint
    start = teacher.unet if same else student.unet
    assistant = teacher.with_network(teacher.unet if lora else copy.deepcopy(teacher.unet))
    learner = (teacher if same else student).with_network(start if lora or not same else copy.deepcopy(start))
    learner.name, learner.kernel, learner.timesteps = student.name, student.kernel, student.timesteps
    learner.vae, learner.text = teacher.vae, teacher.text
    for model in (learner, assistant, teacher):
        if not model.embeds_guidance:
            model.guidance_scale = 1.0
    for place, (model, name) in enumerate(((learner, "default"), (assistant, "assistant"))):
        if lora:
            model.add_lora(rank, alpha, seed=seed + place, name=name)
        else:
            model.train_all_weights(reference=False)
    return Trio(learner, assistant, teacher)


def check_alike(student: LatentModel, teacher: LatentModel) -> None:
    """Raise a ValueError unless both work on the same latents, noise levels and prompts."""
    both = f"student {student.name!r} and teacher {teacher.name!r}"
    if student.latent_shape != teacher.latent_shape or student.vae_fingerprint != teacher.vae_fingerprint:
        raise ValueError(f"{both} work on different latents: choose two with the same autoencoder and picture size")
    if student.schedule.alpha_bar.tolist() != teacher.schedule.alpha_bar.tolist():
        raise ValueError(f"{both} have different noise schedules: choose two with the same")
    if list(map(fingerprint, student.text.modules)) != list(map(fingerprint, teacher.text.modules)):
        raise ValueError(f"{both} read prompts by different text encoders: choose two with the same")
