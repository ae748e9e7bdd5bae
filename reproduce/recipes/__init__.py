"""Read a method's settings at a scale, each with its source: a file for each paper, and one for what has none.

Baselines stand in the file of the paper that compares with them. A setting that the recipe leaves out has the default
of the loop's configuration.
"""

from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reproduce.recipes import dipp, direct, distar, pso, sdpo

SCALES = ("pocket", "full")
RECIPES = pso.RECIPES | sdpo.RECIPES | dipp.RECIPES | distar.RECIPES | direct.RECIPES
# name -> (loop, settings at full scale in the place of those of its methods): not the papers', and declared as such.
VARIANTS = {"adapters": ("distill", dipp.ADAPTERS)}


def recipe(method: str, scale: str) -> dict[str, tuple[Any, str]]:
    """Return {setting: (value, where the value comes from)}.

    Raises:
        ValueError: no recipe of that name, an unknown scale, or a setting that is not a value with its source.
    """
    if method not in RECIPES:
        raise ValueError(f"no recipe for method {method!r}: choose from {', '.join(RECIPES)}, or add one")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(SCALES)}")
    found = {}
    for name, by_scale in RECIPES[method].items():
        if set(by_scale) not in ({"both"}, {"pocket"}, {"full"}, {"pocket", "full"}):
            raise ValueError(f"recipe of {method}: {name} has {', '.join(by_scale)}: give both, or pocket and full")
        for value in by_scale.values():
            check_source(f"recipe of {method}: {name} = {value!r}", value)
        if "both" in by_scale or scale in by_scale:
            found[name] = by_scale.get("both") or by_scale[scale]
    return found


def values(settings: dict[str, tuple[Any, str]]) -> dict[str, Any]:
    """Return {setting: value} of {setting: (value, source)}.

    Raises:
        ValueError: a setting without its source.
    """
    for name, value in settings.items():
        check_source(f"{name} = {value!r}", value)
    return {name: value for name, (value, _) in settings.items()}


def check_source(what: str, value: Any) -> None:
    """Raise a ValueError if what stands for a setting is not a value with its source."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str) and value[1]):
        raise ValueError(f"{what} has no source: give (value, source)")


def describe(method: str, scale: str, settings: dict[str, tuple[Any, str]] | None = None) -> str:
    """Return the recipe as lines "setting = value  # source", with a row's own settings in their places."""
    lines = (recipe(method, scale) | (settings or {})).items()
    return "\n".join(f"  {name} = {value!r}  # {source}" for name, (value, source) in lines)


def make_config(config_type: type, method: str, scale: str = "pocket", **overrides: Any):
    """Return a loop's configuration with the recipe's values, except those given.

    Args:
        config_type: OnlineConfig, OfflineConfig or DistillConfig.

    Raises:
        ValueError: a method of another loop, no such recipe, or a setting that the configuration cannot have.
    """
    from reproduce.training.methods import find  # with torch, which the recipes themselves do not need

    find(method, config_type.loop)
    kinds, known = get_type_hints(config_type), {}
    for name, (value, _) in recipe(method, scale).items():
        if name not in kinds:
            raise ValueError(f"recipe of {method}: {config_type.__name__} has no setting {name!r}")
        if not fits(value, kinds[name]):
            raise ValueError(f"recipe of {method}: {name} = {value!r}: expected {kinds[name]}")
        known[name] = value
    named = {"method": method, "scale": scale, "out": Path("reproduce/runs") / f"{method}-{scale}"}
    return config_type(**(named | known | overrides))


def fits(value: Any, kind: Any) -> bool:
    """Tell whether a value is of an annotated type; a whole number may stand for a float."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in of
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in of)
    if origin is tuple:
        of = of[:1] * len(value) if of[-1] is ... else of
        return isinstance(value, tuple) and len(value) == len(of) and all(map(fits, value, of))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind or NoneType)
