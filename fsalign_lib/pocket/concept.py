r"""Draw, name and ask for a creature outside the 45 animals, for concept customization.

The concept is OpenMoji's panda. Its class, in DreamBooth's sense, is "bear", which the models know. Its name, the
papers' [V], is a rare word before the class, as in DreamBooth's public implementations: "a v bear" here, "a sks dog" in
CLIP's own vocabulary. Each is one token that captions hardly have (here never). No token is added and no embedding is
learned: the text encoder stays frozen, and the image network learns what the word means. So it goes the same way at
every size of model. (A name of two tokens was tried: "a yellow colored sks bear" has its class at a place where no
caption has one, and the pocket world's text encoder, which learnt by place, no longer reads it.)

`named` and `plain` put the word in and take it out; without it a prompt is in the pocket world's grammar.
"""

import functools

import torch
from torch import Tensor

from fsalign_lib.pocket.captions import ANIMALS, COLORS, COUNTS, PLACES, Fact, caption, parse
from fsalign_lib.pocket.render import render, sprite, sprites

TOKEN, CLASS, CODE = "v", "bear", "1F43C"
NAMES = (TOKEN, "sks")  # at pocket scale, at full scale
PROMPT = f"a {TOKEN} {CLASS}"
# Contexts that settings may be tried on; `contexts` leaves them out.
TRIED = (Fact(CLASS, color="yellow"), Fact(CLASS, count=2), Fact(CLASS, place="beach"))


def named(prompt: str) -> str:
    """Put the concept's name into a prompt of its class: "two bears" to "two v bears".

    Raises:
        ValueError: the class is not in the prompt.
    """
    words = prompt.split()
    places = [i for i, word in enumerate(words) if word in (CLASS, CLASS + "s")]
    if not places:
        raise ValueError(f"prompt {prompt!r}: expected the class {CLASS!r} in it")
    return " ".join([*words[: places[0]], TOKEN, *words[places[0] :]])


def plain(prompt: str) -> str:
    """Take the concept's name out of a prompt."""
    return " ".join(word for word in prompt.split() if word not in NAMES)


def contexts() -> list[str]:
    """List prompts of the concept in colours, numbers and places, none in `TRIED` and none a training prompt."""
    facts = [Fact(CLASS, color=c) for c in COLORS]
    facts += [Fact(CLASS, count=n) for n in COUNTS]
    facts += [Fact(CLASS, place=p) for p in PLACES]
    facts += [Fact(CLASS, count=n, place=p) for n, p in ((2, "snow"), (3, "moon"), (4, "desert"), (2, "ocean"))]
    return [named(caption(fact)) for fact in facts if fact not in TRIED]


@functools.lru_cache(maxsize=1)
def bank() -> Tensor:
    """Return the sprites, with the concept in the place of its class."""
    found = sprites().clone()
    found[ANIMALS.index(CLASS)] = sprite(CODE)
    return found


def draw(prompts: list[str], generator: torch.Generator) -> Tensor:
    """Draw the concept as the prompts say: uint8 pictures (B, 3, 64, 64).

    Raises:
        ValueError: a prompt outside the grammar, or of another animal.
    """
    facts = [parse(plain(prompt)) for prompt in prompts]
    for prompt, fact in zip(prompts, facts, strict=True):
        if fact.animal != CLASS:
            raise ValueError(f"prompt {prompt!r}: expected the concept's class, {CLASS!r}")
    return render(facts, generator, bank=bank())
