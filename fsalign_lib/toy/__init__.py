r"""Make a world of 2-D Gaussian mixtures with classes as prompts, where everything is known exactly.

`mixture` has density, score, posterior mean and classifier-free guidance in closed form at every noise level, and the
target of alignment, $p_{ref}(x|c)\,e^{r(x,c)/\beta}/Z(c)$, for a quadratic reward; `student` the exact teacher and a
few-step student distilled from it; `training` what naive fine-tuning and online PSO do to that student.
"""

from fsalign_lib.toy.mixture import (
    CLASS_NAMES,
    GaussianMixture,
    ModeStatistics,
    QuadraticReward,
    mode_statistics,
    probability_flow,
    toy_mixture,
    toy_reward,
)
from fsalign_lib.toy.student import STUDENT_FILE, ToyStudent, ToyTeacher, distil, load_student
from fsalign_lib.toy.training import ReferenceLastStep, naive_fine_tuning, online_pso

__all__ = [
    "CLASS_NAMES",
    "STUDENT_FILE",
    "GaussianMixture",
    "ModeStatistics",
    "QuadraticReward",
    "ReferenceLastStep",
    "ToyStudent",
    "ToyTeacher",
    "distil",
    "load_student",
    "mode_statistics",
    "naive_fine_tuning",
    "online_pso",
    "probability_flow",
    "toy_mixture",
    "toy_reward",
]
