"""Which parameters are filtered: the authors' choice, and the caller's on top of it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ._names import remember

# By the name of the class, so that norms that are not PyTorch's own (LlamaRMSNorm, T5LayerNorm) count, too.
_NORM_CLASS = "norm"
_NAMES = ("bias", "norm")


def param_groups(
    model: nn.Module,
    *,
    update_fraction: float = 0.1,
    weight_decay: float = 0.0,
    exempt: Iterable[str | type[nn.Module] | nn.Module | nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """The groups of `model`'s trainable parameters, for `MoFO` or any optimizer that ignores `update_fraction`.

    Up to three groups, in this order; those without parameters are left out:

    - the filtered weights: `update_fraction` and `weight_decay` as given;
    - what `exempt` names: an update fraction of 1 (every entry moves, as in AdamW), `weight_decay` as given;
    - biases and norm weights: an update fraction of 1 as in the MoFO authors' code, and no weight decay. A parameter
      is one of these if one of its names contains "bias" or "norm", or if the class of its module has "norm" in its
      name, both in any case.

    The groups carry `param_names`, which are the keys of the random bits and appear in error messages; a name stays
    with its parameter where only a part of a group's `params` comes to `MoFO`, or in another order. A parameter that
    several modules share comes once, under its first name, and counts as exempt or as a norm weight if any of its
    names does. Parameters that do not require a gradient are left out.

    Args:
        model: the module whose parameters are to be optimized.
        update_fraction: the share α of each filtered tensor that moves in a step, in (0, 1]; the paper's are
            0.03 to 0.2.
        weight_decay: decoupled weight decay, at least 0.
        exempt: what else is not filtered, embeddings and the head for example: a pattern for whole parameter names as
            in a shell (`"*.wte.weight"`, `"lm_head.*"`), a class (`torch.nn.Embedding`: the parameters of all such
            modules, not those of their submodules), a module (all its parameters), or a parameter.

    Raises:
        ValueError: no parameter requires a gradient, or something in `exempt` matches no parameter (of those that
            do not require one either): it is misspelt, most likely.
        TypeError: something in `exempt` is of another type.
    """
    if isinstance(exempt, (str, nn.Module, nn.Parameter)):
        raise TypeError(f"exempt is a list of what is not to be filtered, not {type(exempt).__name__}: [{exempt!r}]")
    names: dict[nn.Parameter, list[str]] = {}
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
            owners.setdefault(parameter, []).append(module)

    exempted = {parameter for item in exempt for parameter in _matching(item, names, owners)}
    filtered, exempt_weights, unfiltered = (
        _group(update_fraction, weight_decay),
        _group(1.0, weight_decay),
        _group(1.0, 0.0),
    )
    for parameter, known_as in names.items():
        if not parameter.requires_grad:
            continue
        if _is_bias_or_norm(known_as, owners[parameter]):
            group = unfiltered
        elif parameter in exempted:
            group = exempt_weights
        else:
            group = filtered
        group["params"].append(parameter)
        group["param_names"].append(known_as[0])
    groups = [group for group in (filtered, exempt_weights, unfiltered) if group["params"]]
    for group in groups:
        remember(group["params"], group["param_names"])
    if not groups:
        raise ValueError("the model has no parameter that requires a gradient")
    return groups


def _group(update_fraction: float, weight_decay: float) -> dict[str, Any]:
    return {"params": [], "param_names": [], "update_fraction": update_fraction, "weight_decay": weight_decay}


def _is_bias_or_norm(names: list[str], modules: list[nn.Module]) -> bool:
    return any(part in name.lower() for part in _NAMES for name in names) or any(
        _NORM_CLASS in type(module).__name__.lower() for module in modules
    )


def _matching(
    item: str | type[nn.Module] | nn.Module | nn.Parameter,
    names: dict[nn.Parameter, list[str]],
    owners: dict[nn.Parameter, list[nn.Module]],
) -> list[nn.Parameter]:
    if isinstance(item, str):
        found = [
            parameter for parameter, known_as in names.items() if any(fnmatchcase(name, item) for name in known_as)
        ]
    elif isinstance(item, type) and issubclass(item, nn.Module):
        found = [
            parameter for parameter, modules in owners.items() if any(isinstance(module, item) for module in modules)
        ]
    elif isinstance(item, nn.Module):
        found = [parameter for parameter in item.parameters() if parameter in names]
    elif isinstance(item, nn.Parameter):
        found = [item] if item in names else []
    else:
        raise TypeError(
            f"exempt takes names, module classes, modules and parameters, not {type(item).__name__} ({item!r})"
        )
    if not found:
        shown = repr(item) if isinstance(item, (str, type)) else type(item).__name__
        raise ValueError(f"exempt: no parameter of the model matches {shown}")
    return found
