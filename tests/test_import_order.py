"""Imports within the package go one way; CONTRIBUTING.md draws the order."""

import ast
from pathlib import Path


PACKAGE = Path(__file__).parents[1] / "modeling_cyclip"

# From the bottom: a layer imports from itself and from those before it.
LAYERS = (
    # What everything may use, and nothing of ours.
    ("package_files", "arguments"),
    # The model: these files travel with a checkpoint. Beside them the conversion of others' weights.
    ("configuration_cyclip", "configuration_cyclip_resnet", "distributed", "softmaxes", "blockwise", "cyclic", "balance", "loss",
     "sigmoid", "modeling_cyclip", "modeling_cyclip_resnet", "convert_state_dict", "convert"),
    ("data",),
    # The Trainer, and what it is made of.
    ("machines", "training_args", "checkpoints", "dual_encoder", "gradient_cache", "optimizer", "patch_dropout", "fsdp", "health", "divergence",
     "preemption", "resume", "run_record", "training_log", "trainer_checks", "trainer", "towers", "build_model", "lora", "merge"),
    ("evaluation",),
    ("comparison",),
    ("hub",),
    ("commands", "__main__"),
)  # fmt: skip
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}

# A Trainer publishes its model with the library's own card; it asks for both in the methods that do so.
EXCEPTION = ("trainer", "hub")
# What the package shows lies above all of it.
FACADE = "__init__"


def imported(path):
    """Rooms and flat modules of the package that a file imports, wherever in it."""
    package = ("modeling_cyclip", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [target] if target != ("modeling_cyclip",) else [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from (name[1] for name in names if name[0] == "modeling_cyclip" and len(name) > 1)


def files_by_module():
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if first != FACADE:
            yield first, path


def test_every_file_has_its_place_in_the_order():
    assert {module for module, _ in files_by_module()} == set(HEIGHT)


def test_no_file_imports_from_above():
    upwards = [
        (module, target, str(path.relative_to(PACKAGE)))
        for module, path in files_by_module()
        for target in imported(path)
        if target in HEIGHT and HEIGHT[target] > HEIGHT[module]
    ]
    assert {(module, target) for module, target, _ in upwards} == {EXCEPTION}, upwards


def test_files_within_the_package_import_no_room_outside():
    rooms = {"training", "evaluation", "model_cards", "benchmarks", "tests", "docs"}
    for _, path in files_by_module():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in rooms, path


def test_flat_modelling_files_import_none_of_the_rooms():
    # They travel with a checkpoint, where no folder goes along.
    for module in ("configuration_cyclip_resnet", "modeling_cyclip_resnet", "modeling_cyclip", "loss", "blockwise"):
        assert not {"data", "evaluation", "comparison", "hub"} & set(imported(PACKAGE / f"{module}.py"))
