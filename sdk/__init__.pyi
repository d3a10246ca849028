from hasten._acceleration import (
    Acceleration as Acceleration,
    accelerate as accelerate,
    acceleration_of as acceleration_of,
    plan as plan,
    restore as restore,
)
from hasten._claims import Access as Access, Claim as Claim
from hasten._config import Config as Config, apply_overrides as apply_overrides
from hasten._errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    ConflictError as ConflictError,
    HastenError as HastenError,
    NumericalError as NumericalError,
    PluginError as PluginError,
    RankError as RankError,
    UnsupportedError as UnsupportedError,
)
from hasten._hookspecs import hookimpl as hookimpl
from hasten._load import load as load
from hasten._lock import owned as owned
from hasten._models import Captions as Captions, Model as Model
from hasten._plan import Plan as Plan
from hasten._presets import Preset as Preset, presets as presets
from hasten._report import Report as Report
from hasten._technique import (
    Finding as Finding,
    Forecast as Forecast,
    StepForecast as StepForecast,
    Technique as Technique,
    TechniqueConfig as TechniqueConfig,
)
from hasten._version import __version__ as __version__
