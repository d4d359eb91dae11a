"""What run_comparison.py can be told."""

from copy import deepcopy
from dataclasses import dataclass, field


# The paper's four objectives (section 3 and its ablations, table 6), by what run_cyclip.py is told. The first is what the
# others are compared to.
OBJECTIVES = {
    "CLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.0},
    "C-CyCLIP": {"inmodal_cyclic_weight": 0.0, "crossmodal_cyclic_weight": 0.25},
    "I-CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.0},
    "CyCLIP": {"inmodal_cyclic_weight": 0.25, "crossmodal_cyclic_weight": 0.25},
}

# Colours, markers and hatches that the pictures tell apart.
MAX_DRAWN = 8


@dataclass
class ComparisonArguments:
    """Which trainings are compared, and on what."""

    recipe: str = field(metadata={"help": "YAML file of run_cyclip.py's arguments that all trainings share."})
    output_dir: str = field(metadata={"help": "Folder of the report and of the trainings, which are kept and reused."})
    arms: dict = field(
        default_factory=lambda: deepcopy(OBJECTIVES),
        metadata={
            "help": "What is compared: run_cyclip.py's arguments by name, the baseline first (default: CLIP, C-CyCLIP, "
            "I-CyCLIP and CyCLIP with the paper's weights)."
        },
    )
    overrides: dict = field(
        default_factory=dict,
        metadata={"help": "Arguments of run_cyclip.py for all trainings over those of the recipe, as {name: value}."},
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Every arm is trained once with each of them."}
    )
    evaluations: dict = field(
        default_factory=dict,
        metadata={"help": "What is measured: run_evaluation.py's arguments (dataset, tasks, templates, ...) by name."},
    )
    center: bool = field(
        default=False,
        metadata={
            "help": "One more arm without a training: the baseline with each modality's mean removed, which closes the "
            "modality gap for nothing."
        },
    )
    sweep_arguments: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Arguments of run_cyclip.py that take each of --sweep_values together. An arm that sets them all itself "
            "is trained once, as the line to compare with."
        },
    )
    sweep_values: list[str] = field(
        default_factory=list, metadata={"help": "Numbers that --sweep_arguments take, one after another."}
    )
    plane_classes: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of classes that are drawn in the plane (default: six that have most images)."},
    )
    num_parallel: int = field(
        default=1, metadata={"help": "Trainings at a time, each on a GPU of its own or on its share of the cores."}
    )
    launcher: str | None = field(
        default=None,
        metadata={"help": "Command that starts a training, such as 'accelerate launch --num_processes 8'."},
    )

    def __post_init__(self):
        if not self.arms or not self.evaluations:
            raise ValueError("A comparison needs at least one arm and one evaluation: `arms` and `evaluations`.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"The seeds must be different ones, at least one, got {self.seeds}.")
        if bool(self.sweep_arguments) != bool(self.sweep_values):
            raise ValueError("--sweep_arguments and --sweep_values go together.")
        if self.num_parallel < 1:
            raise ValueError(f"--num_parallel must be at least 1, got {self.num_parallel}.")
        if len(self.arms) + self.center > MAX_DRAWN or len(self.plane_classes) > MAX_DRAWN:
            raise ValueError(
                f"Pictures tell {MAX_DRAWN} arms (--center adds one) and {MAX_DRAWN} classes apart: take fewer."
            )
        self.sweep_values = [str(value) for value in self.sweep_values]
        try:
            list(map(float, self.sweep_values))
        except ValueError as error:
            raise ValueError(f"--sweep_values takes numbers: {error}.") from error

    @property
    def baseline(self) -> str:
        """The arm that the others are compared to."""
        return next(iter(self.arms))
