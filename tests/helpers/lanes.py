"""The lanes: `-m quick` proves most for its time, the default most things once, `-m thorough` the rest."""

import re
from pathlib import Path

import pytest

# Number of quick and of thorough tests of each file of a table that a session has collected.
SELECTED = pytest.StashKey[dict[str, int]]()
LEFT_OUT = pytest.StashKey[dict[str, int]]()
TESTS = Path(__file__).parents[1]

# Files of the quick lane, each with a pattern that the names of its quick tests contain; "" matches all. A
# folder without an entry is in the lane as a whole.
# Of the contract suite: a learner of each kind, with inner steps, by comparison, and of values.
QUICK = {
    "test_architecture.py": "",
    "test_lanes.py": "",
    "test_language.py": "comments_keep|arguments|catch",
    "test_losses.py": "",
    "test_names.py": "",
    "test_trees.py": "",
    "baselines/test_baselines.py": "constant|scikit_learn|item",
    "benchmarks/test_acting.py": "turn|shares|one_line",
    "benchmarks/test_streaming.py": "compared|one_line",  # The other one measures times.
    "data/test_splits.py": "",
    "data/features/test_ngrams.py": "",
    "data/features/test_words.py": "",
    "deploy/test_calibration.py": "scikit_learn",
    "deploy/test_deploy.py": "hostile",
    "episodes/test_augment.py": "",
    "episodes/test_batches.py": "",
    "episodes/test_sinusoids.py": "",
    "experiments/drivers/test_drivers.py": "recipes",
    "experiments/drivers/test_rl_bad_input.py": "words|of_zero",
    "experiments/examples/test_programs.py": "all_kinds_of_models",
    "experiments/flags/test_settings.py": "",
    "experiments/pod/test_check.py": "names_of_slices|time_of_an_average|go_together",
    "experiments/reports/test_calibration.py": "",
    "experiments/reports/test_report.py": "",
    "experiments/runtime/test_files.py": "",
    "experiments/runtime/test_flag_sources.py": "",
    "experiments/runtime/test_keys.py": "",
    "experiments/search/test_rows.py": "",
    "experiments/search/test_space.py": "",
    "experiments/setup/test_streams.py": "of_reading",
    "explain/test_explain.py": "complete|right_order|no_sense",
    "inner/test_adjoints.py": r"equals_reverse.*(mixed|recursive)-sgd|closed_form|is_the_rule\w*\[sgd\]",
    "inner/rules/test_base.py": "compose.*(masked|partition)|what_is_learned|refused",
    "learners/test_contract.py": r"(equals|differences).*\[(maml|protonet)(-reverse)?\]|differences.*\[cnp",
    "metagrads/test_metagrad.py": r"closed_form|groups_of_tasks\w*\[1\]",
    "models/test_precision.py": "integers|every_matrix|mlp",
    "nn/test_pool.py": "matches|crop",
    "objectives/test_objectives.py": r"chunks_give.*\[7-some|one_chunk|refused",
    "rl/test_curvature.py": r"\[(none|dice|loaded)-1-2\]",
    "rl/test_distributions.py": "",
    "rl/test_returns.py": r"definition\[1.0-end|sums|gradients|small|no_sense",
    "zoo/test_options.py": "",
}

# Learners that differ from another one in little: what is slow is by default tested on those they vary.
VARIANTS = (
    "anp|baseline_plus_plus|boil|fomaml|in_context_tables|learned_optimizer|linear_probe|lora|lrd2|"
    "mahalanobis_protonet|maml_plus_plus|mann|meta_curvature|meta_lstm|metanet|r2d2|relation|reptile|"
    "simpleshot|warpgrad"
)
# Files of the thorough lane, each with a pattern that the names of its thorough tests contain: slow tests of
# what others prove too, on more learners, more processes or more settings. Derivatives are never left to it.
THOROUGH = {
    "benchmarks/test_weak_scaling.py": "test_one_run_of_two_processes",
    "data/test_streaming.py": "test_real_episodes",
    "deploy/test_export.py": "every|learners_that",
    "deploy/test_onnx.py": "every|page_names",
    "experiments/drivers/test_bundles.py": r"as_the_run_does\[maml_plus_plus\]",
    "experiments/drivers/test_fewshot_rows.py": r"kinds_are_classified\[(mixed|words)\]",
    "experiments/drivers/test_drivers.py": r"test_options_compose\[flags[123]\]",
    "experiments/drivers/test_learners.py": (
        r"test_persistent_evolution|test_what_only\w*\[(leo|maml_plus_plus)\]|"
        r"one_after_another\[matching\]|inner_steps_regress\[anp\]"
    ),
    "experiments/drivers/test_imitation.py": "resumes_to_the_same",
    "experiments/drivers/test_rl.py": "test_every_outer_step",
    "experiments/drivers/test_rl_bad_input.py": r"names_its_task\[es\]",
    "experiments/drivers/test_pertask.py": r"test_classes_are_stratified\w*\[mood\]",
    "experiments/runtime/test_several_processes.py": (
        r"table_of_one|test_what_is_remembered|test_one_is_preempted"
    ),
    "experiments/runtime/test_services.py": "",
    "experiments/setup/test_streams.py": (
        r"completed_from_disk|from_memory\[1\]|wherever_its_images_are\[always"
    ),
    "learners/test_contract.py": (
        r"test_(training_learns|tasks_of_any|jit_equals|constant_labels|any_optax_rule|variable_shots|"
        rf"same_key)\w*\[(\w+-)?({VARIANTS})(-\w+)?\]"
    ),
    "learners/test_contract_dtypes.py": (
        rf"test_(training_on_tokens|values_do|types_stay)\w*\[({VARIANTS})(-[\w ]+)?\]"
    ),
    "learners/test_contract_labels.py": rf"test_labels_in_a_program\w*\[({VARIANTS})\]",
    "learners/test_contract_states.py": rf"\[({VARIANTS})\]",
    "models/test_row_encoders.py": r"go_through_protonet_and_maml\[(molecules|sentence|word_\w+)\]",
    "objectives/test_sequences.py": r"second_presentation\w*\[mann\]",
    "rl/test_gail.py": "test_fewshot_training",
    "rl/test_improve.py": r"two_devices\w*\[trpo\]|skipped\[trpo-reward\]|bit_for_bit\[trpo\]",
    "rl/test_trials.py": "test_the_trust_region_takes_trials",
}

# Files of a minute or more, which start first: at the end, one of them would keep a single worker busy.
SLOW = (
    "experiments/runtime/test_several_processes.py",
    "learners/test_contract.py",
    "data/test_streaming.py",
    "experiments/runtime/test_work_directories.py",
    "learners/test_contract_states.py",
    "learners/test_contract_dtypes.py",
    "experiments/drivers/test_learners.py",
    "experiments/drivers/test_trained_runs.py",
    "experiments/drivers/test_drivers.py",
    "learners/test_contract_labels.py",
    "data/test_streamed.py",
    "experiments/pod/test_check.py",
    "learners/test_closed_form.py",
    "experiments/setup/test_streams.py",
    "experiments/runtime/test_memory.py",
)


def rank(path: Path) -> int:
    """Orders files by when they should start; 0 comes first."""
    name = relative(path)
    return SLOW.index(name) if name in SLOW else len(SLOW)


def is_quick(path: Path, name: str) -> bool:
    """Finds out whether a test is in the quick lane.

    Args:
      path: File of the test.
      name: Name of the test with its parameters, such as `test_f[maml]`.

    Returns:
      True if its file is in the lane and the pattern of the file matches its name.
    """
    pattern = pattern_of(path)
    return pattern is not None and re.search(pattern, name) is not None


def is_thorough(path: Path, name: str) -> bool:
    """Finds out whether a test is in the thorough lane, and not in the default one."""
    pattern = THOROUGH.get(relative(path))
    return pattern is not None and re.search(pattern, name) is not None


def pattern_of(path: Path) -> str | None:
    """Finds the pattern of a file's quick tests; None for a file outside the lane."""
    folders = {str(Path(name).parent) for name in QUICK}
    default = None if str(Path(relative(path)).parent) in folders else ""
    return QUICK.get(relative(path), default)


def relative(path: Path) -> str:
    """Names a file as the table does, by its path within tests/."""
    return path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else path.as_posix()
