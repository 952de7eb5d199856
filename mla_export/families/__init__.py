"""Model families: from config.json and tensor names to a Geometry and what each tensor is for."""

from __future__ import annotations

from mla_export.families.accounting import Accounting, account
from mla_export.families.family import Family, text_config
from mla_export.families.select import FAMILIES, family_of

__all__ = ["FAMILIES", "Accounting", "Family", "account", "family_of", "text_config"]
