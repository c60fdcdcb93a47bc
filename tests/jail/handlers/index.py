"""The entry: makes one attempt, and says what came of it."""

from __future__ import annotations

import importlib
from typing import Any


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """`event`: module, attack, arguments. An attack that is stopped raises; any answer is loot."""
    attack = getattr(importlib.import_module(event["module"]), event["attack"])
    try:
        loot = attack(**event["arguments"])
    except OSError as error:
        return {"escaped": False, "errno": error.errno, "message": str(error)}
    except (AttributeError, ImportError, TypeError):
        raise  # the attack itself is broken, which must not pass for a jail
    except Exception as error:
        return {"escaped": False, "errno": 0, "message": str(error)}
    return {"escaped": True, "errno": 0, "message": repr(loot)[:500]}


def call(event: dict[str, Any], context: object) -> Any:
    """Harmless code: what the function answers, or its failure as it is."""
    return getattr(importlib.import_module(event["module"]), event["attack"])(**event["arguments"])
