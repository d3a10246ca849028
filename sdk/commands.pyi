from hasten._cli._loading import load_quietly as load_quietly
from hasten._cli._option_groups import with_option_groups as with_option_groups
from hasten._cli._options import (
    ConfigFile as ConfigFile,
    Device as Device,
    Dtype as Dtype,
    Enable as Enable,
    Frames as Frames,
    Guidance as Guidance,
    Height as Height,
    Json as Json,
    ModelName as ModelName,
    NumPrompts as NumPrompts,
    Preset as Preset,
    Prompt as Prompt,
    PromptsFile as PromptsFile,
    Seed as Seed,
    Set as Set,
    Steps as Steps,
    Width as Width,
    call_arguments as call_arguments,
    choose_model as choose_model,
    choose_place as choose_place,
    choose_prompts as choose_prompts,
    choose_seed as choose_seed,
    configuration as configuration,
)
from hasten._cli._outputs import hold_file as hold_file, hold_folder as hold_folder
from hasten._cli._progress import showing_progress as showing_progress
from hasten._config import Config as Config
from hasten._conflicts import TESTED as TESTED
from hasten._console import Console as Console, Table as Table
from hasten._generation import (
    Job as Job,
    Sample as Sample,
    generate as generate,
    prepare_folder as prepare_folder,
)
from hasten._grid import comparison_grid as comparison_grid
from hasten._load import (
    find_model as find_model,
    load as load,
    load_saved as load_saved,
    model_folder as model_folder,
)
from hasten._lock import owned as owned
from hasten._machine import describe_machine as describe_machine
from hasten._placement import Placement as Placement
from hasten._plugins import host as host
from hasten._presets import settle as settle
from hasten._processes import PATIENCE as PATIENCE, Processes as Processes, wait_for as wait_for
from hasten._shown import printable as printable
from hasten._solvers import (
    other_solvers as other_solvers,
    own_solver as own_solver,
    solving_with as solving_with,
    use_solver as use_solver,
)
