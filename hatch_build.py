"""Puts the files of the rooms beside the package into a wheel. An editable install reads them where they are."""

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


ROOMS = (
    "training/recipes",
    "training/accelerate",
    "evaluation/benchmarks.yaml",
    "evaluation/metrics",
    "model_cards/template.md",
    "model_cards/space",
)


class ShipRooms(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "standard":
            build_data["force_include"].update({path: f"modeling_cyclip/rooms/{path}" for path in ROOMS})
