"""The verbs: the only place where science meets study and store.

`tasks` works on one case and runs on the workers; `cohorts` and `evaluation` on whole cohorts;
`verbs` are the functions of the command line; `results` is what pages, plots and reports read, `ranking` the order of
the cohorts by each score, `judging` and `verdicts` what all of it says.
"""

from core.workflows.demo import demo, demo_folder
from core.workflows.evaluation import evaluate
from core.workflows.folders import evaluate_folders
from core.workflows.generation import (
    case_name,
    curve_of,
    demo_checkpoint,
    estimate_generation,
    generate,
    generate_by_command,
    generate_for_study,
    previews_of,
    samples_folder,
    train_generator,
)
from core.workflows.library import (
    change_study,
    copy_study,
    create_study,
    known_studies,
    remember_study,
    why_fixed,
)
from core.workflows.outdated import to_compute
from core.workflows.results import Results, load_case, load_case_labels, read_results, results_folder
from core.workflows.verbs import (
    anatomy_of_tables,
    features_folder,
    preprocess_scans,
    quality_of_tables,
    segment_folder,
    simulate_cohort,
    split_cohort,
)
from core.workflows.viewing import draw_thumbnails

__all__ = [
    "Results",
    "anatomy_of_tables",
    "case_name",
    "change_study",
    "copy_study",
    "create_study",
    "curve_of",
    "demo",
    "demo_checkpoint",
    "demo_folder",
    "draw_thumbnails",
    "estimate_generation",
    "evaluate",
    "evaluate_folders",
    "features_folder",
    "generate",
    "generate_by_command",
    "generate_for_study",
    "known_studies",
    "load_case",
    "load_case_labels",
    "preprocess_scans",
    "previews_of",
    "quality_of_tables",
    "read_results",
    "remember_study",
    "results_folder",
    "samples_folder",
    "segment_folder",
    "simulate_cohort",
    "split_cohort",
    "to_compute",
    "train_generator",
    "why_fixed",
]
